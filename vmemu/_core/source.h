/*
 * The source while post-copy runs: answers requests and pushes the rest. Each page is sent at most
 * once, whoever claims its bit first.
 *
 *   vm_source_serve  preempt: answers requests on the urgent channel while
 *   vm_source_push   sends everything else on the main channel from a thread of its own;
 *   vm_source_both   without preempt: one thread, one channel, requests before the push.
 */
#ifndef VM_SOURCE_H
#define VM_SOURCE_H

#include <stdbool.h>
#include <stdint.h>

#include "error.h"
#include "ram.h"

struct vm_image {
    uint8_t *data; /* owned; ordinary memory whatever backs the block */
    uint64_t size;
    uint64_t pages;
    uint64_t *sent; /* a bit a host page: claimed by whoever sends it */
    uint32_t page_shift;
    uint32_t name_length;
    char name[VM_NAME_MAX + 1];
};

struct vm_source {
    int main_fd;     /* write end */
    int urgent_fd;   /* write end, or -1 */
    int return_fd;   /* read end */
    int push_fd;     /* eventfd: the background push may begin */
    uint32_t stop;   /* the destination needs nothing more, or is gone */
    uint64_t cursor; /* where the push goes on: block << 40 | page; moved by requests */
    /* Figures. */
    uint64_t requests, pages_urgent, pages_pushed, pages_zero;
    uint32_t count;
    struct vm_image image[];
};

struct vm_source *vm_source_create(uint32_t count);
void vm_source_destroy(struct vm_source *s);
/* Map the image of block index, zeros; 0, or -1. */
int vm_source_set(struct vm_source *s, uint32_t index, const char *name, uint64_t size,
                  uint32_t page_shift, struct vm_error *err);

/* Each returns 0 when the destination is done or gone, or -1. */
int vm_source_serve(struct vm_source *s, struct vm_error *err);
int vm_source_push(struct vm_source *s, struct vm_error *err);
int vm_source_both(struct vm_source *s, struct vm_error *err);

#endif
