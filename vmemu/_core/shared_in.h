/*
 * The destination with channel shm: pages are taken from the source's image, which both ends have
 * mapped. Of a block whose memory is the image itself (in_image) nothing is copied at all:
 *
 *  - A page that was not announced is not in our page table, and touching it is a minor fault where
 * the page cache has it and a missing one where it has not; both are reported, and asked for.
 *  - The kernel may take a page out of a page table again to write it to swap. So a page that was
 * received can fault once more; it is mapped again, as waking alone would have it fault for ever.
 *  - Each client has a page table of its own, which a page has to be put into as well.
 */
#ifndef VM_SHARED_IN_H
#define VM_SHARED_IN_H

#include <stdbool.h>
#include <stdint.h>

#include "incoming.h"

/* Map an image for reading. It must be sealed: shrunk by the source, reading it is a SIGBUS. */
int vm_image_map(int fd, uint64_t length, uint64_t *address, struct vm_error *err);

static inline bool vm_block_shares(const struct vm_block *block)
{
    return block->in_image || block->image;
}

/* Place the pages of the message, which carries no bytes; as vm_uffd_copy. */
int vm_image_place(int uffd, const struct vm_block *block, const struct vm_header *h,
                   struct vm_place_stats *stats, struct vm_error *err);
/* Pre-copy: bring [offset, offset + length) of a block to its place, not registered yet; 0, or -1.
 */
int vm_image_take(const struct vm_block *block, uint64_t offset, uint64_t length,
                  struct vm_error *err);

/*
 * Map the images of hugepages, before the guest waits for one: 512 small pages of an image take
 * nearly as long to map as to copy. The source must have made them, and nothing be freed yet.
 */
void vm_image_map_hugepages(struct vm_ram *ram);

/* Map a little more of other images, for who has nothing else to do: a page of an image that is
 * mapped is copied sooner. Holes stay holes. False: nothing is left. */
bool vm_image_map_ahead(struct vm_ram *ram, struct vm_image_ahead *at);

/* A page that is there has faulted again: map it and wake who waits. 0, or -1. */
int vm_image_map_again(const struct vm_incoming *in, const struct vm_block *block, uint64_t offset,
                       struct vm_error *err);
/* Clients that have just registered: what pre-copy brought is no fault for them. */
void vm_image_show_clients(struct vm_incoming *in);
/* Free what pre-copy brought of images that are to be released, once the guest has left them. */
void vm_image_release_received(struct vm_ram *ram);

#endif
