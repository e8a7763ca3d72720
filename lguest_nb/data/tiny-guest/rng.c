#include "tiny.h"
#include "virtio.h"

struct entropy { volatile u32 len; volatile int done; u8 bytes[2048]; };

static void entropy_done(struct vq *vq) {
    u32 len;
    struct entropy *e = vq_get(vq, &len);
    if (e) { e->len = len; e->done = 1; }
}
static void start(struct device *device) {
    if (!device->memory) device->memory = take_pages(1);
    device->vq[0].done = entropy_done;
}
const struct driver rng_driver = { RNG, "rng", 1, 1u << 28, start };

u32 rng_read(struct device *device, u8 *to, u32 n) {
    struct entropy *e = device->memory;
    u32 was;
    if (!device->live) return 0;
    if (n > sizeof(e->bytes)) n = sizeof(e->bytes);
    e->done = 0;
    was = irq_save();
    vq_add(&device->vq[0], &(struct seg){ pa(e->bytes), n }, 0, 1, e);
    vq_kick(&device->vq[0]);
    irq_restore(was);
    wait_for(e->done);
    if (e->len < n) n = e->len;
    memcpy(to, e->bytes, n);
    return n;
}
