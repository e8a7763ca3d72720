#include "tiny.h"
#include "virtio.h"

#define SLOTS 16
#define FRAME 1514
struct ether { u8 to[6], from[6]; u16 type; } __attribute__((packed));
struct arp { u16 hardware, protocol; u8 hlen, plen; u16 op; u8 from[6]; u32 from_ip; u8 to[6]; u32 to_ip; }
    __attribute__((packed));
struct ip { u8 version, tos; u16 length, id, fragment; u8 ttl, protocol; u16 sum; u32 from, to; }
    __attribute__((packed));
struct icmp { u8 type, code; u16 sum, id, seq; } __attribute__((packed));
#define n16 __builtin_bswap16                   /* the network is big-endian, and we are not */
#define n32 __builtin_bswap32

struct slot { u8 header[10], pad[6]; u8 frame[FRAME]; u8 in_use; };
struct net {
    struct device *device;
    u8 mac[6];
    u32 dropped;
    struct slot rx[SLOTS], tx[SLOTS];
};
u32 my_ip;

static struct { u32 ip; u8 mac[6]; } neighbours[8];
static volatile struct { u32 ip; u16 seq; int waiting, answered; u32 bytes, microseconds, sec, nsec; } echo;
static void receive(struct net *net, u8 *frame, u32 n);

static void post(struct net *net, struct slot *slot) {
    struct seg seg[2] = { { pa(slot->header), 10 }, { pa(slot->frame), FRAME } };
    vq_add(&net->device->vq[0], seg, 0, 2, slot);
}
static void rx_done(struct vq *vq) {
    struct net *net = vq->device->memory;
    u32 len, any = 0;
    for (struct slot *slot; (slot = vq_get(vq, &len)); any = 1) {
        if (len > 10 && len <= 10 + FRAME) receive(net, slot->frame, len - 10);
        post(net, slot);
    }
    if (any) vq_kick(vq);
}
static void tx_done(struct vq *vq) {
    for (struct slot *slot; (slot = vq_get(vq, 0));) slot->in_use = 0;
}
static void start(struct device *device) {
    if (!device->memory) device->memory = take_pages((sizeof(struct net) + PAGE_SIZE - 1) / PAGE_SIZE);
    struct net *net = device->memory;
    net->device = device;
    device->vq[0].done = rx_done;
    device->vq[1].done = tx_done;
    vq_interrupts(&device->vq[1], 0);           /* nobody waits for a packet to leave */
    memcpy(net->mac, accepted(device, 5) ? config(device) : (u8 *)"\2tiny\0", 6);
    for (u32 i = 0; i < SLOTS; i++) { net->tx[i].in_use = 0; post(net, &net->rx[i]); }
}
const struct driver net_driver = { NET, "net", 2, 1u << 28 | 1 << 5, start };

static struct slot *tx_slot(struct net *net) {
    tx_done(&net->device->vq[1]);               /* they may have gone out without telling us */
    for (u32 i = 0; i < SLOTS; i++)
        if (!net->tx[i].in_use) return &net->tx[i];
    net->dropped++;
    return 0;
}
static void transmit(struct net *net, struct slot *slot, const u8 *to, u16 type, u32 n) {
    struct ether *e = (void *)slot->frame;
    struct seg seg[2] = { { pa(slot->header), 10 }, { pa(slot->frame), n < 60 ? 60 : n } };
    memcpy(e->to, to, 6);
    memcpy(e->from, net->mac, 6);
    e->type = n16(type);
    if (n < 60) memset(slot->frame + n, 0, 60 - n);     /* Ethernet's smallest */
    memset(slot->header, 0, 10);
    slot->in_use = 1;
    vq_add(&net->device->vq[1], seg, 2, 0, slot);
    vq_kick(&net->device->vq[1]);
}

static const u8 everybody[6] = { 255, 255, 255, 255, 255, 255 };

static u8 *neighbour(u32 ip) {
    for (u32 i = 0; i < 8; i++)
        if (neighbours[i].ip == ip) return neighbours[i].mac;
    return 0;
}
static void send_arp(struct net *net, u16 op, const u8 *to, u32 to_ip) {
    struct slot *slot = tx_slot(net);
    if (!slot) return;
    struct arp *a = (void *)(slot->frame + 14);
    *a = (struct arp){ n16(1), n16(0x800), 6, 4, n16(op), { 0 }, my_ip, { 0 }, to_ip };
    memcpy(a->from, net->mac, 6);
    if (op == 2) memcpy(a->to, to, 6);
    transmit(net, slot, to, 0x806, 14 + sizeof(*a));
}
static void receive_arp(struct net *net, struct arp *a, u32 n) {
    static u32 next;
    if (n < sizeof(*a) || a->hardware != n16(1) || a->protocol != n16(0x800) || a->to_ip != my_ip) return;
    u8 *mac = neighbour(a->from_ip);
    if (!mac) {
        neighbours[next % 8].ip = a->from_ip;
        mac = neighbours[next++ % 8].mac;
    }
    memcpy(mac, a->from, 6);
    if (a->op == n16(1)) send_arp(net, 2, a->from, a->from_ip);
}

static u16 checksum(const void *data, u32 n) {
    const u8 *p = data;
    u32 sum = 0;
    for (; n > 1; n -= 2, p += 2) sum += p[0] | p[1] << 8;
    if (n) sum += *p;
    sum = (sum & 0xffff) + (sum >> 16);
    return ~(sum + (sum >> 16));
}
static void send_icmp(struct net *net, const u8 *mac, u32 to, struct icmp *from, u8 type, u32 n) {
    struct slot *slot = tx_slot(net);
    if (!slot) return;
    struct ip *ip = (void *)(slot->frame + 14);
    struct icmp *icmp = (void *)(ip + 1);
    *ip = (struct ip){ 0x45, 0, n16(sizeof(*ip) + n), 0, n16(0x4000), 64, 1, 0, my_ip, to };
    ip->sum = checksum(ip, sizeof(*ip));
    memcpy(icmp, from, n);
    icmp->type = type;
    icmp->sum = 0;
    icmp->sum = checksum(icmp, n);
    transmit(net, slot, mac, 0x800, 14 + sizeof(*ip) + n);
}
static void receive_ip(struct net *net, const u8 *from, struct ip *ip, u32 n) {
    struct icmp *icmp = (void *)(ip + 1);
    if (n < sizeof(*ip) + sizeof(*icmp) || ip->version != 0x45 || n16(ip->length) > n) return;
    if (ip->to != my_ip || ip->protocol != 1 || n16(ip->length) < sizeof(*ip) + sizeof(*icmp)) return;
    n = n16(ip->length) - sizeof(*ip);
    if (checksum(icmp, n)) return;
    if (icmp->type == 8) send_icmp(net, from, ip->from, icmp, 0, n);
    if (icmp->type == 0 && echo.waiting && ip->from == echo.ip && icmp->seq == echo.seq) {
        echo.microseconds = microseconds_since(echo.sec, echo.nsec);
        echo.bytes = n;
        echo.waiting = 0;
        echo.answered = 1;
    }
}
static void receive(struct net *net, u8 *frame, u32 n) {
    struct ether *e = (void *)frame;
    if (n < sizeof(*e) || !my_ip) return;
    if (e->type == n16(0x806)) receive_arp(net, (void *)(e + 1), n - sizeof(*e));
    if (e->type == n16(0x800)) receive_ip(net, e->from, (void *)(e + 1), n - sizeof(*e));
}

static void print_ip(u32 ip) {
    print("%u.%u.%u.%u", ip & 255, ip >> 8 & 255, ip >> 16 & 255, ip >> 24);
}
static u8 *resolve(struct net *net, u32 ip) {
    for (u32 tries = 0; tries < 3 && !neighbour(ip) && !interrupted(); tries++) {
        u32 was = irq_save();
        send_arp(net, 1, everybody, ip);
        irq_restore(was);
        timer_start(500000000);
        wait_for(timer_fired || neighbour(ip) || interrupted());
    }
    return neighbour(ip);
}
void ping(struct device *device, u32 address, u32 count, u32 size) {
    static u8 packet[FRAME];
    struct net *net = device->memory;
    struct icmp *icmp = (void *)packet;
    u32 sent = 0, received = 0;

    if (!device->live) { print("the network device is not started\n"); return; }
    u8 *mac = resolve(net, address);
    if (!mac) { print_ip(address); print(" does not answer ARP\n"); return; }
    for (u32 i = 0; i < size; i++) packet[sizeof(*icmp) + i] = i;
    while (sent < count && !interrupted()) {
        nap(sent ? 200000000 : 100000);         /* a timer interrupt also sets our clock right */
        *icmp = (struct icmp){ 8, 0, 0, n16(0x7479), n16(++sent) };
        u32 was = irq_save();
        echo.ip = address; echo.seq = icmp->seq; echo.waiting = 1; echo.answered = 0;
        echo.sec = lguest_data.sec; echo.nsec = lguest_data.nsec;
        send_icmp(net, mac, address, icmp, 8, sizeof(*icmp) + size);
        irq_restore(was);
        timer_start(1000000000);
        wait_for(echo.answered || timer_fired || interrupted());
        echo.waiting = 0;
        if (!echo.answered) { print("no answer to %u\n", sent); continue; }
        received++;
        print("%u bytes from ", echo.bytes);
        print_ip(address);
        print(": seq %u, %u.%03u ms\n", sent, echo.microseconds / 1000, echo.microseconds % 1000);
    }
    print("%u sent, %u received\n", sent, received);
}
