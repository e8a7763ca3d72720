/* What a Guest says through a serial port is one byte after the other, each with a question before it: may I? While nothing
 * else is the matter with that port, both are answered here, and who prints takes many bytes at once. lguest_nb/pc/uart.py
 * decides when that is so; everything else about the port is there. */
#include "interpose.h"
#include <string.h>
#include <unistd.h>

/* From now on there is a box, and it is shut: bytes written to `data` go into it while it is open, and `status` is asked
 * before. `fd` is an eventfd, rung when the box is not empty any more. On the CPU thread. */
EXPORT void machine_keep_outbox(struct machine *m, uint32_t data, uint32_t status, int fd)
{
    struct outbox *o = &m->outbox;
    pthread_mutex_lock(&o->lock);
    o->data = data;
    o->status = status;
    o->fd = fd;
    o->kept = true;
    pthread_mutex_unlock(&o->lock);
}

/* `answer` is what `status` gives while it is open; -1: it is shut. Any thread. */
EXPORT void machine_open_outbox(struct machine *m, int answer)
{
    pthread_mutex_lock(&m->outbox.lock);
    m->outbox.answer = answer;
    m->outbox.open = answer >= 0;
    pthread_mutex_unlock(&m->outbox.lock);
}

/* All that is in it, into OUTBOX bytes at `bytes`: how many. Any thread. */
EXPORT int machine_take_outbox(struct machine *m, char *bytes)
{
    struct outbox *o = &m->outbox;
    pthread_mutex_lock(&o->lock);
    int count = o->count;
    memcpy(bytes, o->bytes, count);
    o->count = 0;
    pthread_mutex_unlock(&o->lock);
    return count;
}

/* A byte to a port. False: it is none of ours now. On the CPU thread, as is the next. */
bool post(struct machine *m, uint32_t port, uint8_t byte)
{
    struct outbox *o = &m->outbox;
    const uint64_t one = 1;
    if (!o->kept || port != o->data) return false;
    pthread_mutex_lock(&o->lock);
    bool ours = o->open && o->count < OUTBOX && (o->count || write(o->fd, &one, sizeof one) == sizeof one);
    if (ours) o->bytes[o->count++] = byte; /* whoever was woken for it waits for the lock */
    pthread_mutex_unlock(&o->lock);
    return ours;
}

bool may_post(struct machine *m, uint32_t port, uint32_t *answer)
{
    struct outbox *o = &m->outbox;
    if (!o->kept || port != o->status) return false;
    pthread_mutex_lock(&o->lock);
    bool ours = o->open && o->count < OUTBOX;
    if (ours) *answer = o->answer;
    pthread_mutex_unlock(&o->lock);
    return ours;
}
