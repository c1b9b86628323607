/*
 * A QEMU TCG plugin that records each memory access of a guest, for vmemu.
 *
 *     cc -O2 -shared -fPIC -o vmemu-plugin.so vmemu-plugin.c
 *     qemu-system-x86_64 -accel tcg -plugin ./vmemu-plugin.so,out=guest.gpa ...
 *
 * The accesses are in guest.gpa when QEMU has ended:
 *
 *     vmemu trace convert guest.gpa guest.vmtrace
 *
 * Arguments, each behind a comma of -plugin:
 *
 *     out=FILE   where the records go; a FIFO will do, so that no large file is made
 *     filter=N   leave out an access whose (page, load or store) is among the N that its vCPU
 *                remembers, one in each place of a table: the trace then says which pages were
 *                touched, and is hundreds of times shorter. 0, the default: all accesses
 *     max=N      stop recording after N records; 0, the default: never
 *
 * It asks for API version 1 of a QEMU before 9.0 and for version 2 of a later one, as what is used
 * here is the same in all of them. -DQEMU_PLUGIN_API=N when building asks for version N.
 *
 * A record has 24 bytes, little-endian; the file has nothing else:
 *
 *     u64 sequence number over all vCPUs   u64 guest-physical address   u32 vCPU
 *     u8 0 load, 1 store   u8 log2 of the size in bytes   u8 1 if it is a device's   u8 0
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- what is used of QEMU's plugin interface ---- */

#define EXPORT __attribute__((visibility("default")))

struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_plugin_hwaddr;

/* As qemu_plugin_install is given it; the interface has more behind it. */
struct guest_info {
    const char *target;
    struct {
        int min, current;
    } api;
    bool is_system;
};

/* Values of enum qemu_plugin_cb_flags and of enum qemu_plugin_mem_rw. */
enum { NO_REGISTERS = 0 };
enum { LOADS_AND_STORES = 3 };

typedef void on_vcpu_fn(uint64_t id, unsigned int vcpu);
typedef void on_block_fn(uint64_t id, struct qemu_plugin_tb *block);
typedef void on_access_fn(unsigned int vcpu, uint32_t info, uint64_t vaddr, void *data);
typedef void on_exit_fn(uint64_t id, void *data);

void qemu_plugin_register_vcpu_init_cb(uint64_t id, on_vcpu_fn *on_vcpu);
void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, on_block_fn *on_block);
void qemu_plugin_register_atexit_cb(uint64_t id, on_exit_fn *on_exit, void *data);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *insn, on_access_fn *on_access,
                                      int flags, int which, void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *block, size_t index);
unsigned int qemu_plugin_mem_size_shift(uint32_t info);
bool qemu_plugin_mem_is_store(uint32_t info);
struct qemu_plugin_hwaddr *qemu_plugin_get_hwaddr(uint32_t info, uint64_t vaddr);
bool qemu_plugin_hwaddr_is_io(const struct qemu_plugin_hwaddr *where);
uint64_t qemu_plugin_hwaddr_phys_addr(const struct qemu_plugin_hwaddr *where);
int qemu_plugin_num_vcpus(void) __attribute__((weak)); /* came with API version 2 */

EXPORT int qemu_plugin_install(uint64_t id, const struct guest_info *info, int argc, char **argv);

#ifdef QEMU_PLUGIN_API
EXPORT int qemu_plugin_version = QEMU_PLUGIN_API;
#else
EXPORT int qemu_plugin_version = 1;

/* Runs when QEMU loads the plugin, before it reads the version. */
__attribute__((constructor)) static void choose_version(void)
{
    if (qemu_plugin_num_vcpus)
        qemu_plugin_version = 2;
}
#endif

/* ---- recording ---- */

enum { MAX_VCPUS = 4096, BUFFERED = 1 << 13, PAGE_BITS = 12, PAGE_BYTES = 1 << PAGE_BITS };
enum { MAX_FILTER = 1 << 24 };

struct record {
    uint64_t sequence;
    uint64_t address;
    uint32_t vcpu;
    uint8_t store;
    uint8_t size_log2;
    uint8_t io;
    uint8_t zero;
};
_Static_assert(sizeof(struct record) == 24, "a record has 24 bytes");

/*
 * The thread of the vCPU appends to its buffer without a lock, and writes it to the file when it is
 * full. At exit, which may come from any thread while others run, all that was appended until then
 * is written by that thread. So "filled" is stored after the record, and set back only under the
 * lock of the file.
 */
struct vcpu {
    _Atomic uint32_t filled;
    _Atomic uint64_t unknown; /* accesses of which QEMU could not say the physical address */
    uint64_t *filter;
    struct record records[BUFFERED];
};

static struct vcpu *_Atomic vcpus[MAX_VCPUS];
static _Atomic uint64_t next_sequence;
static atomic_bool stopped;

static pthread_mutex_t file_lock = PTHREAD_MUTEX_INITIALIZER;
static int file = -1; /* of what follows, each is used under the lock */
static uint64_t written;

static const char *out;
static uint64_t filter_entries, max_records;

static void write_records(const struct record *records, uint32_t count)
{
    const char *at = (const char *)records;
    size_t left = count * sizeof(*records);
    while (left > 0 && file >= 0) {
        ssize_t n = write(file, at, left);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            fprintf(stderr, "vmemu plugin: %s: can't be written: %s; no more is recorded\n", out,
                    strerror(errno));
            close(file);
            file = -1;
            atomic_store(&stopped, true);
            return;
        }
        at += n;
        left -= (size_t)n;
    }
    if (file >= 0)
        written += count;
}

static void write_buffer(struct vcpu *vcpu)
{
    pthread_mutex_lock(&file_lock);
    write_records(vcpu->records, atomic_load(&vcpu->filled));
    atomic_store(&vcpu->filled, 0);
    pthread_mutex_unlock(&file_lock);
}

static bool seen_lately(struct vcpu *vcpu, uint64_t address, bool store)
{
    if (filter_entries == 0)
        return false;
    uint64_t key = address >> PAGE_BITS << 1 | store;
    uint64_t *entry = &vcpu->filter[key % filter_entries];
    bool seen = *entry == key;
    *entry = key;
    return seen;
}

static void append(struct vcpu *vcpu, struct record record)
{
    uint64_t sequence = atomic_fetch_add_explicit(&next_sequence, 1, memory_order_relaxed);
    if (max_records != 0 && sequence >= max_records) {
        atomic_store(&stopped, true);
        return;
    }
    record.sequence = htole64(sequence);
    uint32_t filled = atomic_load_explicit(&vcpu->filled, memory_order_relaxed);
    vcpu->records[filled] = record;
    atomic_store_explicit(&vcpu->filled, filled + 1, memory_order_release);
    if (filled + 1 == BUFFERED)
        write_buffer(vcpu);
}

/* An access within one page. */
static void on_part(unsigned int index, struct vcpu *vcpu, uint32_t info, uint64_t vaddr,
                    unsigned int size_log2)
{
    struct qemu_plugin_hwaddr *where = qemu_plugin_get_hwaddr(info, vaddr);
    if (!where) {
        atomic_fetch_add_explicit(&vcpu->unknown, 1, memory_order_relaxed);
        return;
    }
    uint64_t address = qemu_plugin_hwaddr_phys_addr(where);
    bool store = qemu_plugin_mem_is_store(info);
    if (seen_lately(vcpu, address, store))
        return;
    append(vcpu, (struct record){
                     .address = htole64(address),
                     .vcpu = htole32(index),
                     .store = store,
                     .size_log2 = (uint8_t)size_log2,
                     .io = qemu_plugin_hwaddr_is_io(where),
                 });
}

/*
 * The two pages of an access that straddles them lie anywhere in physical memory. So each side is
 * looked up, and recorded in parts whose sizes are powers of two.
 */
static void on_access(unsigned int index, uint32_t info, uint64_t vaddr, void *data)
{
    (void)data;
    struct vcpu *vcpu = index < MAX_VCPUS ? atomic_load(&vcpus[index]) : NULL;
    if (!vcpu || atomic_load_explicit(&stopped, memory_order_relaxed))
        return;
    uint64_t left = UINT64_C(1) << qemu_plugin_mem_size_shift(info);
    while (left > 0) {
        uint64_t room = PAGE_BYTES - (vaddr & (PAGE_BYTES - 1));
        uint64_t most = left < room ? left : room;
        unsigned int size_log2 = 63 - (unsigned int)__builtin_clzll(most);
        on_part(index, vcpu, info, vaddr, size_log2);
        vaddr += UINT64_C(1) << size_log2;
        left -= UINT64_C(1) << size_log2;
    }
}

/* ---- QEMU's events ---- */

static void on_block(uint64_t id, struct qemu_plugin_tb *block)
{
    (void)id;
    size_t count = qemu_plugin_tb_n_insns(block);
    for (size_t i = 0; i < count; i++)
        qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(block, i), on_access, NO_REGISTERS,
                                         LOADS_AND_STORES, NULL);
}

static struct vcpu *new_vcpu(void)
{
    struct vcpu *vcpu = calloc(1, sizeof(*vcpu));
    if (!vcpu || filter_entries == 0)
        return vcpu;
    size_t bytes = filter_entries * sizeof(*vcpu->filter);
    vcpu->filter = malloc(bytes);
    if (!vcpu->filter) {
        free(vcpu);
        return NULL;
    }
    memset(vcpu->filter, 0xff, bytes); /* no page has that number */
    return vcpu;
}

static void on_vcpu(uint64_t id, unsigned int index)
{
    (void)id;
    if (index >= MAX_VCPUS) {
        fprintf(stderr, "vmemu plugin: vCPU %u is not recorded: a trace has at most %d\n", index,
                MAX_VCPUS);
        return;
    }
    if (atomic_load(&vcpus[index])) /* unplugged, and plugged in again */
        return;
    struct vcpu *vcpu = new_vcpu();
    if (!vcpu)
        fprintf(stderr, "vmemu plugin: vCPU %u is not recorded: out of memory\n", index);
    atomic_store(&vcpus[index], vcpu);
}

static void on_exit_of_qemu(uint64_t id, void *data)
{
    (void)id;
    (void)data;
    unsigned int count = 0;
    uint64_t unknown = 0;
    pthread_mutex_lock(&file_lock);
    for (unsigned int i = 0; i < MAX_VCPUS; i++) {
        struct vcpu *vcpu = atomic_load(&vcpus[i]);
        if (!vcpu)
            continue;
        write_records(vcpu->records, atomic_load_explicit(&vcpu->filled, memory_order_acquire));
        unknown += atomic_load(&vcpu->unknown);
        count++;
    }
    /* What other threads append from here on has no file to go to. */
    if (file >= 0)
        close(file);
    file = -1;
    fprintf(stderr, "vmemu plugin: %s: %" PRIu64 " records of %u vCPUs\n", out, written, count);
    if (unknown)
        fprintf(stderr, "vmemu plugin: %" PRIu64 " accesses had no physical address\n", unknown);
    pthread_mutex_unlock(&file_lock);
}

/* ---- arguments ---- */

static bool parse_number(const char *text, uint64_t most, uint64_t *value)
{
    char *end;
    errno = 0;
    *value = strtoull(text, &end, 0);
    return text[0] >= '0' && text[0] <= '9' && *end == '\0' && errno == 0 && *value <= most;
}

static bool parse_argument(const char *argument)
{
    if (strncmp(argument, "out=", 4) == 0) {
        out = argument + 4;
        return *out != '\0';
    }
    if (strncmp(argument, "filter=", 7) == 0)
        return parse_number(argument + 7, MAX_FILTER, &filter_entries);
    if (strncmp(argument, "max=", 4) == 0)
        return parse_number(argument + 4, UINT64_MAX, &max_records);
    return false;
}

int qemu_plugin_install(uint64_t id, const struct guest_info *info, int argc, char **argv)
{
    if (!info->is_system) {
        fprintf(stderr, "vmemu plugin: it records whole guests: qemu-system-*, not qemu-user\n");
        return -1;
    }
    for (int i = 0; i < argc; i++) {
        if (!parse_argument(argv[i])) {
            fprintf(stderr, "vmemu plugin: %s: not out=FILE, filter=N (at most %d) or max=N\n",
                    argv[i], MAX_FILTER);
            return -1;
        }
    }
    if (!out) {
        fprintf(stderr, "vmemu plugin: say where the records go: -plugin ...,out=FILE\n");
        return -1;
    }
    file = open(out, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (file < 0) {
        fprintf(stderr, "vmemu plugin: %s: can't be written: %s\n", out, strerror(errno));
        return -1;
    }
    qemu_plugin_register_vcpu_init_cb(id, on_vcpu);
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_block);
    qemu_plugin_register_atexit_cb(id, on_exit_of_qemu, NULL);
    return 0;
}
