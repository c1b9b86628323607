/*
 * The event log: what happened, when, in which thread, under QEMU's names.
 *
 * A log is one mapping of a memfd, so that the events of a process outlive it and whoever writes
 * the file has those of all processes. Writers claim a slot each with one atomic addition and never
 * wait; a full log counts what it lost and keeps what it has. Memory is used as events come.
 */
#ifndef VM_EVENTS_H
#define VM_EVENTS_H

#include <stdalign.h>
#include <stdbool.h>
#include <stdint.h>

#include "error.h"
#include "event_table.h"
#include "util.h"

enum { VM_SIDE_DESTINATION = 1, VM_SIDE_SOURCE = 2, VM_SIDE_BOTH = 3 };

enum vm_event_id {
    VM_EVENT_NONE,
#define X(id, ...) VM_EVENT_##id,
    VM_EVENT_TABLE(X)
#undef X
        VM_EVENT_COUNT
};

enum vm_word {
#define X(id, text) VM_WORD_##id,
    VM_WORD_TABLE(X)
#undef X
        VM_WORD_COUNT
};

struct vm_event {
    uint64_t t_ns; /* CLOCK_MONOTONIC, the same in every process of the machine */
    uint32_t tid;
    uint16_t id; /* written last: 0 is a slot that was claimed and not filled yet */
    uint16_t pad;
    uint32_t block; /* index in the table of blocks */
    uint32_t pad2;
    uint64_t a, b; /* event_table.h says what they are */
};

struct vm_event_log {
    uint64_t capacity; /* events */
    uint64_t start_ns;
    uint32_t vcpus; /* of the guest; 0: this side has none */
    uint32_t pid;   /* of the process that writes: the last one that made or attached it */
    alignas(64) uint64_t claimed;
    alignas(64) struct vm_event event[];
};

/* A new log (of less than 2^32 events) with a descriptor that another process can attach, both
 * owned by the caller; NULL on failure. */
struct vm_event_log *vm_event_log_create(uint64_t capacity, uint32_t vcpus, int *fd,
                                         struct vm_error *err);
struct vm_event_log *vm_event_log_attach(int fd, struct vm_error *err);
void vm_event_log_destroy(struct vm_event_log *log);
uint64_t vm_event_log_written(const struct vm_event_log *log);
uint64_t vm_event_log_lost(const struct vm_event_log *log);

void vm_event_put(struct vm_event_log *log, uint64_t t_ns, enum vm_event_id id, uint32_t block,
                  uint64_t a, uint64_t b);

/* Log an event that happens now; without a log this is one branch. */
static inline void vm_event(struct vm_event_log *log, enum vm_event_id id, uint32_t block,
                            uint64_t a, uint64_t b)
{
    if (VM_UNLIKELY(log)) {
        vm_event_put(log, vm_now_ns(), id, block, a, b);
    }
}

/* One whose time was taken before, so that figures made from both agree to the nanosecond. */
static inline void vm_event_at(struct vm_event_log *log, uint64_t t_ns, enum vm_event_id id,
                               uint32_t block, uint64_t a, uint64_t b)
{
    if (VM_UNLIKELY(log)) {
        vm_event_put(log, t_ns, id, block, a, b);
    }
}

/* b of mark_postcopy_blocktime_begin and _end. */
static inline uint64_t vm_event_cpu(int32_t cpu, bool already_received)
{
    return (uint64_t)already_received << 32 | (uint32_t)cpu;
}

/* ---- the table, for whoever reads ---- */

struct vm_event_kind {
    const char *name, *text, *extra;
    int side;
    bool run;
};

/* NULL when there is none of that number. */
const struct vm_event_kind *vm_event_kind(uint32_t id);
const char *vm_event_word(uint32_t word);

/* ---- writing it to a file ---- */

struct vm_event_block {
    const char *name;
    uint64_t host; /* where it is mapped on this side, or 0 */
    uint64_t size;
    uint64_t page_size;
};

struct vm_event_side {
    const struct vm_event_log *log;
    int side;
    uint32_t blocks;
    const struct vm_event_block *block;
};

enum { VM_EVENTS_JSON = 0, VM_EVENTS_TEXT = 1 };

/*
 * Write the events of all sides in the order of their times: JSON lines, or the text of QEMU's log
 * backend. 0, or -1 when memory or the disk is full.
 */
int vm_events_write(const struct vm_event_side *side, uint32_t sides, int fd, int format,
                    struct vm_error *err);

#endif
