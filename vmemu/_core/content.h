/*
 * What every byte of a block must be, so that all of them can be checked whatever the interleaving.
 *
 * Before the guest runs, the 64-bit word number i of a block is mix(key + i * STEP), the key being
 * made from the seed and the block's name; whole pages are zeros instead, chosen by a hash of their
 * number, or the block is a file. A guest write stores, at whatever size, the bytes of p + j * STEP
 * in word j of a page of 4 KiB, p being made from the key and the page alone, so that a write costs
 * a multiplication: the same value however often and by whomever it is written. So a byte is either
 * its initial one or its written one, nothing else.
 */
#ifndef VM_CONTENT_H
#define VM_CONTENT_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "access.h"

#define VM_CONTENT_STEP    UINT64_C(0x9E3779B97F4A7C15) /* odd: i * STEP visits every value once */
#define VM_CONTENT_WRITTEN UINT64_C(0x632BE59BD9B4E019)
#define VM_CONTENT_ZERO    UINT64_C(0xD1B54A32D192ED03)

struct vm_content {
    uint64_t key;        /* of (seed, name of the block) */
    uint64_t zero_below; /* a page is zeros when its hash is below this: share * 2^64; UINT64_MAX:
                            all of them */
    const uint8_t *file; /* as long as the block, or NULL */
    uint32_t page_shift; /* zero pages are zero as whole host pages */
};

/* The finaliser of splitmix64: a bijection, so that no two words of a block are equal by
 * construction. */
static inline uint64_t vm_mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94D049BB133111EB);
    return x ^ (x >> 31);
}

static inline bool vm_content_page_is_zero(const struct vm_content *c, uint64_t page)
{
    if (c->zero_below == 0 || c->file) {
        return false;
    }
    return c->zero_below == UINT64_MAX ||
           vm_mix((c->key ^ VM_CONTENT_ZERO) + page * VM_CONTENT_STEP) < c->zero_below;
}

/* Where the words of the 8-byte aligned offset begin: word i from there is mix(base + i * STEP). */
static inline uint64_t vm_content_base(const struct vm_content *c, uint64_t offset)
{
    return c->key + (offset >> 3) * VM_CONTENT_STEP;
}

/* The aligned word at offset before the guest ran; the block's size is a multiple of 8. */
static inline uint64_t vm_content_initial(const struct vm_content *c, uint64_t offset)
{
    uint64_t word;

    if (c->file) {
        memcpy(&word, c->file + offset, sizeof(word));
        return word;
    }
    return vm_content_page_is_zero(c, offset >> c->page_shift) ? 0
                                                               : vm_mix(vm_content_base(c, offset));
}

/* Of the first word of a page of 4 KiB once it is written: word j of it is that + j * STEP. */
static inline uint64_t vm_content_written_base(const struct vm_content *c, uint64_t page_offset)
{
    return vm_mix(vm_content_base(c, page_offset) + VM_CONTENT_WRITTEN);
}

static inline uint64_t vm_content_written(const struct vm_content *c, uint64_t offset)
{
    uint64_t in_page = offset % VM_PAGE_SIZE;

    return vm_content_written_base(c, offset - in_page) + in_page / 8 * VM_CONTENT_STEP;
}

/* A mark byte has a bit for each byte of a word that the guest wrote; as a mask over the word. */
static inline uint64_t vm_mark_mask(uint8_t mark)
{
    /* Spread the eight bits to the low bits of eight bytes, then fill each byte with its bit. */
    uint64_t bits = ((uint64_t)mark * UINT64_C(0x0101010101010101)) & UINT64_C(0x8040201008040201);

    return (((bits + UINT64_C(0x7F7F7F7F7F7F7F7F)) | bits) >> 7 & UINT64_C(0x0101010101010101)) *
           0xFF;
}

/* Fill image[0..length), which is zeros, with the initial seeded content from offset 0 on; length
 * is whole pages. */
void vm_content_fill(const struct vm_content *c, uint8_t *image, uint64_t length);

struct vm_mismatch {
    uint64_t offset; /* of the first wrong byte of the word, in the block */
    uint32_t block;
    uint8_t expected;
    uint8_t found;
};

struct vm_verify {
    uint64_t bytes_checked;
    uint64_t bytes_wrong;
    uint32_t stop;  /* set by another thread: give up */
    uint32_t noted; /* entries used in mismatch */
    struct vm_mismatch mismatch[16];
};

/*
 * Compare the block mapped at host with what it must be. marks: a byte for each word of the block,
 * or NULL when none are kept. given_back: a byte for each host page, not 0 where a balloon gave it
 * back, which must be zeros; or NULL. The memory must be complete: it is read as it is.
 */
void vm_verify_block(struct vm_verify *v, uint32_t block, const uint8_t *host, uint64_t size,
                     const struct vm_content *c, const uint8_t *marks, const uint8_t *given_back);

#endif
