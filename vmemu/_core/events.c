#include "events.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static const struct vm_event_kind kinds[VM_EVENT_COUNT] = {
#define X(id, kind_name, kind_side, is_run, kind_text, kind_extra)                                 \
    [VM_EVENT_##id] = {.name = #kind_name,                                                         \
                       .text = kind_text,                                                          \
                       .extra = kind_extra,                                                        \
                       .side = VM_SIDE_##kind_side,                                                \
                       .run = is_run},
    VM_EVENT_TABLE(X)
#undef X
};

static const char *const words[VM_WORD_COUNT] = {
#define X(id, text) [VM_WORD_##id] = text,
    VM_WORD_TABLE(X)
#undef X
};

const struct vm_event_kind *vm_event_kind(uint32_t id)
{
    return id > VM_EVENT_NONE && id < VM_EVENT_COUNT ? &kinds[id] : NULL;
}

const char *vm_event_word(uint32_t word)
{
    return word < VM_WORD_COUNT ? words[word] : NULL;
}

/* ---- the log ---- */

static uint64_t map_length(uint64_t capacity)
{
    return offsetof(struct vm_event_log, event) + capacity * sizeof(struct vm_event);
}

static struct vm_event_log *map_log(int fd, uint64_t length, struct vm_error *err)
{
    void *map = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);

    if (map == MAP_FAILED) {
        vm_fail_errno(err, "mmap of the event log", 0);
        return NULL;
    }
    return map;
}

struct vm_event_log *vm_event_log_create(uint64_t capacity, uint32_t vcpus, int *fd,
                                         struct vm_error *err)
{
    struct vm_event_log *log = NULL;

    *fd = memfd_create("vmemu-events", MFD_CLOEXEC);
    if (*fd < 0) {
        vm_fail_errno(err, "memfd for the event log", 0);
        return NULL;
    }
    if (ftruncate(*fd, (off_t)map_length(capacity)) < 0) {
        vm_fail_errno(err, "size of the event log", 0);
    } else {
        log = map_log(*fd, map_length(capacity), err);
    }
    if (!log) {
        close(*fd);
        *fd = -1;
        return NULL;
    }
    log->capacity = capacity;
    log->vcpus = vcpus;
    log->pid = (uint32_t)getpid();
    log->start_ns = vm_now_ns();
    return log;
}

struct vm_event_log *vm_event_log_attach(int fd, struct vm_error *err)
{
    struct vm_event_log *log;
    struct stat status;

    if (fstat(fd, &status) < 0) {
        vm_fail_errno(err, "size of the event log", 0);
        return NULL;
    }
    log = map_log(fd, (uint64_t)status.st_size, err);
    if (log && map_length(log->capacity) != (uint64_t)status.st_size) {
        munmap(log, (size_t)status.st_size);
        vm_fail_protocol(err, "event log", "the descriptor is not one of an event log");
        return NULL;
    }
    if (log) {
        log->pid = (uint32_t)getpid();
    }
    return log;
}

void vm_event_log_destroy(struct vm_event_log *log)
{
    if (log) {
        munmap(log, map_length(log->capacity));
    }
}

uint64_t vm_event_log_written(const struct vm_event_log *log)
{
    uint64_t claimed = vm_get(&log->claimed);

    return claimed < log->capacity ? claimed : log->capacity;
}

uint64_t vm_event_log_lost(const struct vm_event_log *log)
{
    return vm_get(&log->claimed) - vm_event_log_written(log);
}

static uint32_t thread_id(void)
{
    static _Thread_local uint32_t tid;

    if (!tid) {
        tid = (uint32_t)syscall(SYS_gettid); /* once a thread: it never changes */
    }
    return tid;
}

void vm_event_put(struct vm_event_log *log, uint64_t t_ns, enum vm_event_id id, uint32_t block,
                  uint64_t a, uint64_t b)
{
    uint64_t slot = vm_add(&log->claimed, 1);
    struct vm_event *e;

    if (VM_UNLIKELY(slot >= log->capacity)) {
        return; /* lost: claimed has counted it */
    }
    e = &log->event[slot];
    e->t_ns = t_ns;
    e->tid = thread_id();
    e->block = block;
    e->a = a;
    e->b = b;
    vm_set_release(&e->id, (uint16_t)id);
}
