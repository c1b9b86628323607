/*
 * The guest: vCPU threads that replay a trace on the mapped blocks. Every access is a real load or
 * store; one on a page that has not arrived is a real fault, whose cost to the vCPU is measured.
 */
#ifndef VM_REPLAY_H
#define VM_REPLAY_H

#include <stdbool.h>
#include <stdint.h>

#include "access.h"
#include "content.h"
#include "delivery.h"
#include "error.h"
#include "events.h"
#include "lane.h"
#include "pace.h"
#include "ram.h"
#include "status.h"

/*
 * Where a page of the dictionary lies, which has those of the guest's traces, one behind the other:
 * address | enum vm_ref_tag. The address is that of a 4 KiB page, so its low bits carry what makes
 * an access leave the fast path.
 */
enum vm_ref_tag {
    VM_REF_SPECIAL = 1, /* one of the next three, of a vCPU's own table: the lowest bit, so that one
                         * look at an address tells of it and of what is not aligned */
    VM_REF_FIRST = 2,   /* this vCPU has not touched it: it may fault */
    VM_REF_OUTSIDE = 4, /* not mapped on any block: accesses are dropped */
    VM_REF_ALIAS = 8,   /* on the memory of another page: instead of the address, its index */
    VM_REF_ZERO = 16,   /* zeros before the guest wrote */
    VM_REF_FILE = 32,   /* from a file */
    VM_REF_TAGS = 63,
};

/* What the content of a page of the dictionary is made from. */
struct vm_page_key {
    uint64_t initial; /* vm_content_base of the page */
    uint64_t written; /* vm_content_written_base */
};

/*
 * A guest of so many pages at most has an image of what must be found when its reads are checked.
 * With more, what is compared would be waited for as much as what is read, and the image would take
 * as much memory as the guest.
 */
enum { VM_EXPECTED_PAGES = 4096 };

/*
 * Where an access on an alias goes on: the same place of the page that it stands for. All accesses
 * to the same memory so meet in one page of the dictionary, with its marks and its first touch.
 */
static inline uint64_t vm_alias_of(uint64_t host, uint64_t where)
{
    return (host & ~(uint64_t)VM_REF_TAGS) | where % VM_PAGE_SIZE;
}

/* One fault as the vCPU saw it: from before the access until it was done. */
struct vm_fault_record {
    uint64_t start_ns, end_ns; /* CLOCK_MONOTONIC */
    uint64_t offset;           /* of the access, in the block */
    uint32_t block;
    uint32_t write;
};

/* What all vCPUs share. */
struct vm_guest {
    const struct vm_ram *ram;
    const struct vm_content *content; /* a block each */
    const uint64_t *host; /* of a dictionary page each: see above; all tagged VM_REF_FIRST */
    const struct vm_page_key *key; /* of a dictionary page each */
    uint64_t pages;
    /* A byte for each word of each dictionary page: what was written; NULL: not kept. */
    uint8_t *marks;
    /* The dictionary's pages as they are when each write was made that is known of: what a read
     * must find at least. NULL: reads are not checked, or go by the marks. */
    uint8_t *expected;
    /* A bit a dictionary page, set by writes: dirty tracking at the source; or NULL. */
    uint64_t *written;
    struct vm_pace *pace; /* NULL: as fast as possible */
    bool check_reads;
};

struct vm_vcpu {
    const struct vm_guest *guest;
    struct vm_delivery *delivery; /* with which it serves its own faults; NULL: others do it */
    const struct vm_lane *lane;   /* what it does */
    uint32_t lanes;
    struct vm_event_log *log; /* NULL: no events are logged */
    uint32_t id;
    uint32_t thread;      /* its thread id, once it runs */
    uint64_t begin, end;  /* the accesses of its share that are replayed: [begin, end) */
    uint32_t stop;        /* set by another thread: end as soon as the next touch is over */
    uint32_t *tid;        /* where the fault thread looks for this thread's id */
    const uint64_t *seen; /* faults of this thread that the fault thread has read */
    /* Figures; read by others while it runs. */
    uint64_t started_ns; /* when it stood at its first access; 0: it does not yet */
    uint64_t position;   /* in its share: the first access that is not done */
    uint64_t accesses, reads, writes, dropped;
    uint64_t faults, blocktime_ns;
    uint64_t reads_checked, reads_wrong;
    uint64_t paced; /* accesses that had a time at which they were due; how late they were: */
    uint64_t lag_mean_ns, lag_max_ns, lag_end_ns;
    struct vm_waiting *waiting; /* the touch that it is in; read by other processes too */
    /* Owned; the faults in the order in which they happened. */
    struct vm_fault_record *record;
    uint64_t records, record_capacity;
    uint32_t noted;
    struct vm_mismatch mismatch[8];
};

/* Gather what was written, from the dictionary's marks into those of one block (a byte a word of
 * the block). */
void vm_marks_gather(uint8_t *block_marks, uint32_t index, uint64_t pages, const int32_t *block,
                     const uint64_t *offset, const uint8_t *marks);

/* Replay the accesses [begin, end) of the lanes. 0 at the end or when stopped, -1 without memory.
 */
int vm_vcpu_run(struct vm_vcpu *v, struct vm_error *err);
/*
 * Mark what the accesses before v->begin wrote, without touching memory: they were replayed
 * elsewhere, at the source. May run beside vm_vcpu_run of the same lanes, on a vm_vcpu of its own.
 */
int vm_vcpu_mark(struct vm_vcpu *v, struct vm_error *err);
void vm_vcpu_release(struct vm_vcpu *v);

#endif
