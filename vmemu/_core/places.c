#include "places.h"

#include <string.h>

#include "access.h"
#include "piece.h"
#include "util.h"

void vm_places_fill(uint64_t *host, struct vm_page_key *key, uint64_t pages, const int32_t *block,
                    const uint64_t *offset, const uint64_t *same, const struct vm_ram *ram,
                    const struct vm_content *content)
{
    for (uint64_t i = 0; i < pages; i++) {
        const struct vm_content *c;

        if (block[i] < 0) {
            host[i] = VM_REF_OUTSIDE;
            continue;
        }
        if (same && same[i] != i) {
            host[i] = same[i] << VM_PAGE_SHIFT | VM_REF_ALIAS;
            continue;
        }
        c = &content[block[i]];
        host[i] = (ram->block[block[i]].host + offset[i]) | VM_REF_FIRST;
        key[i].initial = vm_content_base(c, offset[i]);
        key[i].written = vm_content_written_base(c, offset[i]);
        if (c->file) {
            host[i] |= VM_REF_FILE;
        } else if (vm_content_page_is_zero(c, offset[i] >> c->page_shift)) {
            host[i] |= VM_REF_ZERO;
        }
    }
}

void vm_expected_fill(const struct vm_guest *g, uint8_t *expected)
{
    for (uint64_t where = 0; where < g->pages << VM_PAGE_SHIFT; where += 8) {
        uint64_t host = g->host[where >> VM_PAGE_SHIFT], word;
        struct vm_piece p = {.where = where, .size = 8};

        if (!(host & (VM_REF_OUTSIDE | VM_REF_ALIAS))) {
            p.host = (host & ~(uint64_t)VM_REF_TAGS) + where % VM_PAGE_SIZE;
            word = vm_mixed_word(g, &p, vm_get_acquire(&g->marks[where >> 3]));
            memcpy(expected + where, &word, sizeof(word));
        }
    }
}
