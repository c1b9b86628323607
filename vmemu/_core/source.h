/*
 * The source: rounds of pre-copy, then post-copy, where it answers requests and pushes the rest and
 * each page is sent once, whoever claims its bit first; and a second time, by the urgent channel,
 * when somebody waits for one that the push has put into the main channel.
 *
 *   vm_source_round  pre-copy: sends every dirty target page once, while the guest runs here;
 *   vm_source_serve  preempt: answers requests on the urgent channel while
 *   vm_source_push   sends everything else on the main channel from a thread of its own;
 *   vm_source_serve_vcpu  the same for one vCPU that serves itself, on channels of its own;
 *   vm_source_both   without preempt: one thread, one channel, requests before the push.
 */
#ifndef VM_SOURCE_H
#define VM_SOURCE_H

#include <stdbool.h>
#include <stdint.h>

#include "error.h"
#include "events.h"
#include "limiter.h"
#include "push_order.h"
#include "ram.h"

struct vm_image {
    uint8_t *data; /* owned; ordinary memory whatever backs the block */
    uint64_t size;
    uint64_t pages;
    uint64_t *sent;  /* a bit a host page: claimed by whoever sends it in post-copy */
    uint64_t *asked; /* a bit a host page: a request has named it */
    uint64_t
        *dirty; /* a bit a target page (4 KiB): what the destination does not have in pre-copy */
    uint64_t *zeros; /* a bit a target page: nothing but zeros; NULL: who wants to know reads it */
    bool shared;     /* the destination has mapped it too: pages carry no bytes */
    bool in_place;   /* it is the destination's memory of the block itself */
    uint32_t page_shift;
    uint32_t name_length;
    char name[VM_NAME_MAX + 1];
};

struct vm_source {
    struct vm_event_log *log;  /* NULL: no events are logged */
    int main_fd;               /* write end */
    int urgent_fd;             /* write end, or -1 */
    int return_fd;             /* read end */
    int push_fd;               /* eventfd: the background push may begin */
    uint32_t stop;             /* the destination needs nothing more, or is gone */
    bool shares;               /* some images are shared */
    bool release_ram;          /* free what was sent in post-copy, or before the flip */
    bool withholds;            /* for tests: some pages are never sent, and that never said */
    uint32_t flip;             /* end the round of pre-copy: time is up, or the flip has come */
    struct vm_limiter limiter; /* of pre-copy, then of the push; never of requests */
    uint64_t limiter_owed;     /* bytes carried along that the push has to make up for */
    uint64_t fault_around;     /* pages of the window around one that is asked for; 0: none */
    /* The push. */
    uint32_t push_order;  /* enum vm_push_order */
    uint64_t cursor;      /* where it goes on; requests move it when it follows them */
    uint64_t cursor_seen; /* where that was when it looked last */
    uint64_t *recorded;   /* places in the order of the recording, owned */
    uint64_t recorded_count, recorded_at;
    /* Figures. */
    uint64_t requests, pages_urgent, pages_pushed, pages_zero;
    uint64_t pages_carried;                    /* among pushed and zero: along with an answer */
    uint64_t pages_precopied, bytes_precopied; /* target pages, again each time */
    uint64_t bytes_released;
    uint32_t rounds;
    uint32_t count;
    struct vm_image image[];
};

struct vm_source *vm_source_create(uint32_t count);
void vm_source_destroy(struct vm_source *s);
/* Map the image of block index, zeros; 0, or -1. */
int vm_source_set(struct vm_source *s, uint32_t index, const char *name, uint64_t size,
                  uint32_t page_shift, struct vm_error *err);
/*
 * Channel shm, after vm_source_set: the image lies in a file from now on, which the destination has
 * mapped. in_place: it is the memory of the block there. The descriptor stays the caller's.
 */
int vm_source_share(struct vm_source *s, uint32_t index, int fd, bool in_place,
                    struct vm_error *err);
/* Of a shared image that is made, and never written again: note what is zeros, because reading a
 * hole of a file would fill it. */
int vm_source_note_zeros(struct vm_source *s, uint32_t index, int fd, struct vm_error *err);

/*
 * Send every dirty target page once, claiming its bit before it is read: what is written later is
 * dirty again. Ends early when s->flip or s->stop is set. 0, or -1.
 */
int vm_source_round(struct vm_source *s, struct vm_error *err);
/* Dirty target pages of a block. */
uint64_t vm_source_dirty(const struct vm_source *s, uint32_t block);
/*
 * A host page travels as a whole: one that is dirty in part becomes dirty throughout, and the
 * others are at the destination and need not be sent. Returns the dirty host pages.
 */
uint64_t vm_source_canonicalise(struct vm_source *s, uint32_t block);
/* The first stretch of dirty host pages at or after *first, which becomes its start; 0: there is
 * none. */
uint64_t vm_source_dirty_run(const struct vm_source *s, uint32_t block, uint64_t *first);
/*
 * Take the marks of pages that the guest wrote and set the dirty bits of where they lie. written: a
 * bit a page of the guest's dictionary, cleared; block and offset as in vm_places_fill.
 */
void vm_source_harvest(struct vm_source *s, uint64_t pages, const int32_t *block,
                       const uint64_t *offset, uint64_t *written);

/* With release_ram, after vm_source_canonicalise: free the pages that the destination has. */
void vm_source_release_sent(struct vm_source *s);

/* Each returns 0 when the destination is done or gone, or -1. */
int vm_source_serve(struct vm_source *s, struct vm_error *err);
/* Until the vCPU's end of the return path is closed; tells it what goes another way. */
int vm_source_serve_vcpu(struct vm_source *s, int return_fd, int page_fd, struct vm_error *err);
int vm_source_push(struct vm_source *s, struct vm_error *err);
int vm_source_both(struct vm_source *s, struct vm_error *err);

#endif
