#include "tiny.h"
#include "virtio.h"

struct device devices[MAX_DEVICES];
u32 n_devices;
static u8 *page;                                /* the descriptor page, mapped */
static struct vq *vq_by_irq[32];
static const struct driver *drivers[] = { &console_driver, &block_driver, &net_driver, &rng_driver };

static u32 descriptor_size(struct descriptor *d) {
    return sizeof(*d) + d->num_vq * sizeof(struct vqconfig) + 2 * d->feature_len + d->config_len;
}
static void scan(void) {
    page = map_device(ram / PAGE_SIZE, 1);
    for (u32 at = 0; at <= PAGE_SIZE - sizeof(struct descriptor) && n_devices < MAX_DEVICES;) {
        struct device *device = &devices[n_devices];
        device->offset = at;
        device->desc = (struct descriptor *)(page + at);
        at += descriptor_size(device->desc);
        if (!device->desc->type || at > PAGE_SIZE) break;
        n_devices++;
        for (u32 i = 0; i < sizeof(drivers) / sizeof(drivers[0]); i++)
            if (drivers[i]->type == device->desc->type && device->desc->num_vq >= drivers[i]->queues)
                device->driver = drivers[i];
    }
}

static struct vqconfig vqconfig(struct device *device, u32 i) {
    return ((struct vqconfig *)(device->desc + 1))[i];          /* a copy: it may lie anywhere */
}
u8 *offered_features(struct device *device) {
    return (u8 *)(device->desc + 1) + device->desc->num_vq * sizeof(struct vqconfig);
}
u8 *config(struct device *device) {
    return offered_features(device) + 2 * device->desc->feature_len;
}
int accepted(struct device *device, u32 bit) {
    u32 n = device->desc->feature_len;
    return bit / 8 < n && offered_features(device)[n + bit / 8] >> bit % 8 & 1;
}
struct device *find_device(u8 type, u32 n) {
    for (u32 i = 0; i < n_devices; i++)
        if (devices[i].driver && devices[i].desc->type == type && !n--) return &devices[i];
    return 0;
}

static void set_status(struct device *device, u8 status) {
    device->desc->status = status;
    hcall(NOTIFY, ram + device->offset, 0, 0);
}
void reset_device(struct device *device) {
    console_drain();                            /* it may be the console */
    device->live = 0;
    for (u32 i = 0; i < 32; i++)
        if (vq_by_irq[i] && vq_by_irq[i]->device == device) vq_by_irq[i] = 0;
    set_status(device, 0);                      /* back when the Launcher has stopped everything */
}

static int find_vq(struct device *device, u32 i) {
    struct vq *vq = &device->vq[i];
    struct vqconfig c = vqconfig(device, i);
    u32 used_at = (16 * c.num + 4 + 2 * c.num + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1);

    if (c.irq == 0 || c.irq >= 32 || c.num == 0 || c.num & (c.num - 1)) return 0;
    if (!vq->token) {                           /* the first time; a later start finds it all here */
        u8 *ring = map_device(c.pfn, (used_at + 4 + 8 * c.num + PAGE_SIZE - 1) / PAGE_SIZE);
        vq->desc = (void *)ring;
        vq->avail = (void *)(ring + 16 * c.num);
        vq->used = (void *)(ring + used_at);
        vq->token = take_pages((c.num * sizeof(void *) + PAGE_SIZE - 1) / PAGE_SIZE);
    }
    vq->device = device;
    vq->num = vq->n_free = c.num;
    vq->irq = c.irq;
    vq->pfn = c.pfn;
    vq->free = vq->last_used = 0;
    vq->avail->idx = vq->avail->flags = 0;
    for (u32 n = 0; n < c.num; n++) vq->desc[n].next = n + 1;
    if (accepted(device, 28) && !vq->indirect)
        vq->indirect = take_pages((c.num * sizeof(*vq->indirect) + PAGE_SIZE - 1) / PAGE_SIZE);
    if (!accepted(device, 28)) vq->indirect = 0;
    vq_by_irq[c.irq] = vq;
    return 1;
}

void start_device(struct device *device) {
    const struct driver *driver = device->driver;
    u32 n = device->desc->feature_len;

    if (!driver || device->live) return;
    set_status(device, 0);
    set_status(device, ACKNOWLEDGE);
    set_status(device, ACKNOWLEDGE | DRIVER);
    for (u32 i = 0; i < n; i++)
        offered_features(device)[n + i] = i < 4 ? offered_features(device)[i] & driver->features >> 8 * i : 0;
    for (u32 i = 0; i < driver->queues; i++)
        if (!find_vq(device, i)) {
            print("device at %u: I cannot use its queue %u\n", device->offset, i);
            set_status(device, FAILED);
            return;
        }
    driver->start(device);                      /* fills rings, kicks nothing */
    set_status(device, ACKNOWLEDGE | DRIVER | DRIVER_OK);
    device->live = 1;
    for (u32 i = 0; i < driver->queues; i++) vq_kick(&device->vq[i]);
}
void start_devices(void) {
    scan();
    for (u32 i = 0; i < n_devices; i++) start_device(&devices[i]);
}

int vq_add(struct vq *vq, struct seg *seg, u32 out, u32 in, void *token) {
    u32 n = out + in, head = vq->free, i = head;
    volatile struct desc *d = vq->desc;

    if (vq->n_free < (vq->indirect ? 1 : n)) return 0;
    if (vq->indirect) {
        struct desc *table = vq->indirect[head];
        for (u32 k = 0; k < n; k++)
            table[k] = (struct desc){ seg[k].addr, seg[k].len,
                                      (k < out ? 0 : WRITE) | (k + 1 < n ? NEXT : 0), k + 1 };
        d[head].addr = pa(table);
        d[head].len = n * sizeof(*table);
        d[head].flags = INDIRECT;
        vq->free = d[head].next;
        vq->n_free--;
    } else {
        for (u32 k = 0; k < n; k++) {
            i = vq->free;
            d[i].addr = seg[k].addr;
            d[i].len = seg[k].len;
            d[i].flags = (k < out ? 0 : WRITE) | (k + 1 < n ? NEXT : 0);
            vq->free = d[i].next;
        }
        vq->n_free -= n;
    }
    vq->token[head] = token;
    vq->avail->ring[vq->avail->idx % vq->num] = head;
    asm volatile("" : : : "memory");            /* everything above is written before ... */
    vq->avail->idx++;                           /* ... they may look at it */
    return 1;
}

static inline void full_barrier(void) { asm volatile("lock; addl $0, (%%esp)" : : : "memory"); }

void vq_kick(struct vq *vq) {
    if (!vq->device->live) return;
    full_barrier();                             /* our index goes out before we read their flag */
    if (!(vq->used->flags & 1)) hcall(NOTIFY, vq->pfn * PAGE_SIZE, 0, 0);
}

void *vq_get(struct vq *vq, u32 *len) {
    if (vq->last_used == vq->used->idx) return 0;
    asm volatile("" : : : "memory");
    u32 head = vq->used->ring[vq->last_used % vq->num].id, i = head, n = 1;
    if (len) *len = vq->used->ring[vq->last_used % vq->num].len;
    vq->last_used++;
    if (head >= vq->num || !vq->token[head]) panic("the Launcher used what I never gave it");
    void *token = vq->token[head];
    vq->token[head] = 0;
    for (; vq->desc[i].flags & NEXT; n++) i = vq->desc[i].next;
    vq->desc[i].next = vq->free;                /* the whole chain becomes the start of the free list */
    vq->free = head;
    vq->n_free += n;
    return token;
}

void vq_interrupts(struct vq *vq, int on) {
    vq->avail->flags = on ? 0 : 1;
    full_barrier();                             /* then look at the ring again, or lose one */
}
void vq_interrupt(u32 irq) {
    struct vq *vq = vq_by_irq[irq];
    if (vq && vq->done) vq->done(vq);          /* a late one, for a device that was reset? nobody minds */
}
