#include "tiny.h"
#include "virtio.h"

struct request {                                /* one page per disk, one request at a time */
    struct { u32 type, ioprio; u64 sector; } header;
    volatile u8 status;
    volatile int done;
};
static void request_done(struct vq *vq) {
    struct request *r = vq_get(vq, 0);
    if (r) r->done = 1;
}
static void start(struct device *device) {
    if (!device->memory) device->memory = take_pages(1);
    device->vq[0].done = request_done;
}
const struct driver block_driver = { BLOCK, "block", 1, 1u << 28 | 1 << 2 | 1 << 0, start };

u32 block_capacity(struct device *device) {
    return *(u32 *)config(device);              /* in sectors: 2 TB will do for us */
}

int block_request(struct device *device, u32 type, u64 sector, u64 address, u32 bytes) {
    struct request *r = device->memory;
    struct seg seg[3] = { { pa(&r->header), 16 }, { address, bytes }, { pa(&r->status), 1 } };
    u32 out = type & 1 ? 2 : 1, was;

    if (!device->live) return -1;
    r->header.type = type;
    r->header.ioprio = 0;
    r->header.sector = sector;
    r->status = 0xee;                           /* neither yes nor no */
    r->done = 0;
    was = irq_save();
    vq_add(&device->vq[0], seg, out, 3 - out, r);
    vq_kick(&device->vq[0]);
    irq_restore(was);
    wait_for(r->done);
    return r->status;
}
