/* Asking the source for pages: the writing end of the return path. */
#ifndef VM_ASKING_H
#define VM_ASKING_H

#include <stdbool.h>
#include <stdint.h>

#include "incoming.h"

enum { VM_ASK_AT_ONCE = 64 };

struct vm_request {
    uint32_t block;
    uint64_t page;
    /* What is to come along: so many pages further on, each a stride from the one before. */
    uint32_t ahead;
    int64_t stride;
};

struct vm_asking {
    struct vm_incoming *in;
    int fd;           /* where requests are written */
    bool always_name; /* several threads write to the return path: none knows what was named last */
    int64_t named;    /* the block that the last request named, or -1 */
    unsigned kept;    /* requests that wait for room, in the order of their faults */
    struct vm_request keep[VM_ASK_AT_ONCE];
};

/* Note, and log, who asks for a page and when: before the request leaves, so that whoever brings
 * the page finds it. */
void vm_ask_note(struct vm_incoming *in, struct vm_request q, uint32_t tid);
/* Send a request, or keep it when there is no room now; at most VM_ASK_AT_ONCE may be kept. 0, or
 * -1. */
int vm_ask(struct vm_asking *a, struct vm_request q, struct vm_error *err);
/* Send what was kept while there is room. 0, or -1. */
int vm_ask_kept(struct vm_asking *a, struct vm_error *err);

#endif
