/* Where the pages of a guest's dictionary lie, and what must be found there when it begins. */
#ifndef VM_PLACES_H
#define VM_PLACES_H

#include <stdint.h>

#include "content.h"
#include "ram.h"
#include "replay.h"

/* Lay the dictionary on the blocks. block: index or -1 (outside), offset: in the block, same: the
 * first page on the same memory, or NULL when no two share any; `pages` entries each. */
void vm_places_fill(uint64_t *host, struct vm_page_key *key, uint64_t pages, const int32_t *block,
                    const uint64_t *offset, const uint64_t *same, const struct vm_ram *ram,
                    const struct vm_content *content);

/* Begin the image of what must be found, of a guest that has all else: what is marked as written
 * is. */
void vm_expected_fill(const struct vm_guest *g, uint8_t *expected);

#endif
