/* The receiving end of one channel: puts messages together from whatever the descriptor gives,
 * places pages. */
#ifndef VM_RECEIVER_H
#define VM_RECEIVER_H

#include <stdbool.h>
#include <stdint.h>

#include "asking.h"
#include "incoming.h"
#include "wire.h"

struct vm_receiver {
    struct vm_incoming *in;
    int fd;
    const char *name; /* of the channel, for messages */
    struct vm_place_stats *stats;
    struct vm_stages *stages;
    uint8_t *map; /* the staging area, owned */
    uint64_t map_length;
    uint8_t *start;    /* a header fits before the page-aligned payload: where a message begins */
    uint64_t capacity; /* bytes from start on */
    uint64_t have;     /* bytes there */
    uint64_t eager;    /* how much to read before a header is known */
    /* A page that the source owes an answer, itself or that it goes another way; cleared by it. */
    bool awaits;
    struct vm_request awaited;
    uint8_t *zeros; /* as long as the largest page; never written, so it costs no memory */
    uint64_t zeros_length;
    bool has_turn; /* of those who listen in turn: nobody else reads */
};

enum vm_received { VM_RECEIVED_MORE = 0, VM_RECEIVED_COMPLETE = 1, VM_RECEIVED_NOTHING = 2 };

/* eager: read a whole page with its header in one go (urgent channel), else the header first
 * (bulk). */
int vm_receiver_create(struct vm_receiver *r, struct vm_incoming *in, int fd, const char *name,
                       int eager, struct vm_place_stats *stats, struct vm_stages *stages,
                       struct vm_error *err);
void vm_receiver_destroy(struct vm_receiver *r);

/* One read, and every message that it completes. An enum vm_received, or -1. Nothing: there was
 * nothing to read. */
int vm_receiver_step(struct vm_receiver *r, struct vm_error *err);

#endif
