/* include/linux/lguest_launcher.h: what the Launcher leaves above the top of our RAM. */
struct descriptor { u8 type, num_vq, feature_len, config_len, status; } __attribute__((packed));
struct vqconfig { u16 num, irq; u32 pfn; } __attribute__((packed));
enum { NET = 1, BLOCK = 2, CONSOLE = 3, RNG = 4 };
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FAILED = 0x80 };

/* include/linux/virtio_ring.h */
struct desc { u64 addr; u32 len; u16 flags, next; };
enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };
struct avail { u16 flags, idx, ring[]; };       /* ours; flags 1: NO_INTERRUPT, please */
struct used { u16 flags, idx; struct { u32 id, len; } ring[]; };   /* theirs; flags 1: NO_NOTIFY */

struct vq {
    struct device *device;
    u16 num, irq, free, n_free, last_used;
    u32 pfn;
    volatile struct desc *desc;
    volatile struct avail *avail;
    volatile struct used *used;
    struct desc (*indirect)[4];                 /* one small table per head, or none */
    void **token;                               /* what the driver called the request, by head */
    void (*done)(struct vq *vq);                /* called when the Host says it has used some */
};
struct device {
    u32 offset;                                 /* in the descriptor page */
    struct descriptor *desc;
    const struct driver *driver;
    int live;
    void *memory;                               /* the driver's own page(s), taken once */
    struct vq vq[2];
};
struct driver {
    u8 type;
    const char *name;
    u32 queues, features;                       /* how many it needs; which bits it understands */
    void (*start)(struct device *device);
};
struct seg { u64 addr; u32 len; };

/* virtio.c */
#define MAX_DEVICES 24
extern struct device devices[MAX_DEVICES];
extern u32 n_devices;
void start_devices(void);
void start_device(struct device *device);
void reset_device(struct device *device);
struct device *find_device(u8 type, u32 n);     /* the nth of its kind that has a driver */
u8 *offered_features(struct device *device);
u8 *config(struct device *device);
int accepted(struct device *device, u32 bit);
int vq_add(struct vq *vq, struct seg *seg, u32 out, u32 in, void *token);
void vq_kick(struct vq *vq);
void *vq_get(struct vq *vq, u32 *len);
void vq_interrupts(struct vq *vq, int on);
void vq_interrupt(u32 irq);

/* console.c */
extern const struct driver console_driver, block_driver, net_driver, rng_driver;
int console_live(void);
void console_write(const char *text, u32 n);
void console_drain(void);
int getch(void);
int interrupted(void);
/* block.c, rng.c, net.c */
u32 block_capacity(struct device *device);
int block_request(struct device *device, u32 type, u64 sector, u64 address, u32 bytes);
u32 rng_read(struct device *device, u8 *to, u32 n);
void ping(struct device *device, u32 address, u32 count, u32 size);
extern u32 my_ip;
