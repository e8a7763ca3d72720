#include "tiny.h"
#include "virtio.h"

#define SLOTS 8
static struct console {
    struct device *device;
    volatile u32 in_len, in_pos, in_posted;
    volatile u8 busy[SLOTS];
    char in[1024];
    char out[SLOTS][512];
} *con;

static void post_input(void) {
    con->in_pos = con->in_len = 0;
    con->in_posted = vq_add(&con->device->vq[0], &(struct seg){ pa(con->in), sizeof(con->in) }, 0, 1, con);
}
static void input_done(struct vq *vq) {
    u32 len;
    if (vq_get(vq, &len)) {
        con->in_len = len < sizeof(con->in) ? len : sizeof(con->in);
        con->in_posted = 0;
    }
}
static void output_done(struct vq *vq) {
    for (void *slot; (slot = vq_get(vq, 0));) *(u8 *)slot = 0;
}
static void start(struct device *device) {
    if (con && con->device != device) return;   /* one keyboard is enough */
    if (!device->memory) device->memory = take_pages((sizeof(*con) + PAGE_SIZE - 1) / PAGE_SIZE);
    con = device->memory;
    con->device = device;
    device->vq[0].done = input_done;
    device->vq[1].done = output_done;
    for (u32 i = 0; i < SLOTS; i++) con->busy[i] = 0;
    vq_interrupts(&device->vq[1], 0);
    post_input();
}
const struct driver console_driver = { CONSOLE, "console", 2, 1u << 28, start };

int console_live(void) { return con && con->device->live; }

void console_write(const char *text, u32 n) {
    struct vq *vq = &con->device->vq[1];
    static u32 next;
    u32 slot = next++ % SLOTS, was = irq_save();
    if (con->busy[slot]) {                      /* all slots are on their way: now an interrupt helps */
        vq_interrupts(vq, 1);
        for (;;) {
            output_done(vq);
            if (!con->busy[slot]) break;
            hcall(HALT, 0, 0, 0);
            irq_disable();
        }
        vq_interrupts(vq, 0);
    }
    memcpy(con->out[slot], text, n);
    con->busy[slot] = 1;
    vq_add(vq, &(struct seg){ pa(con->out[slot]), n }, 1, 0, (void *)&con->busy[slot]);
    vq_kick(vq);
    irq_restore(was);
}

void console_drain(void) {                      /* before the power goes: wait until all is written */
    flush();
    if (!console_live()) return;
    struct vq *vq = &con->device->vq[1];
    u32 was = irq_save();
    vq_interrupts(vq, 1);
    for (;;) {
        output_done(vq);
        if (vq->n_free == vq->num) break;
        hcall(HALT, 0, 0, 0);
        irq_disable();
    }
    vq_interrupts(vq, 0);
    irq_restore(was);
}

int getch(void) {
    flush();
    if (!console_live()) for (;;) hcall(HALT, 0, 0, 0);
    while (con->in_pos == con->in_len) {
        u32 was = irq_save();                   /* from here nothing arrives: so, is it really empty? */
        if (!con->in_posted && con->in_pos == con->in_len) {
            post_input();
            vq_kick(&con->device->vq[0]);
        }
        irq_restore(was);
        wait_for(!con->in_posted);
    }
    return (u8)con->in[con->in_pos++];
}
int interrupted(void) {                         /* ^C waits in what was typed */
    if (!console_live()) return 0;
    for (u32 i = con->in_pos; i < con->in_len; i++)
        if (con->in[i] == 3) { con->in_pos = i + 1; return 1; }
    return 0;
}
