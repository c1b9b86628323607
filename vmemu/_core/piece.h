/* A part of an access that lies in one word: what loads or stores it, and what must be found. */
#ifndef VM_PIECE_H
#define VM_PIECE_H

#include <stdint.h>

#include "access.h"
#include "content.h"
#include "replay.h"
#include "util.h"

/* ---- one load or store of the recorded size: what really touches guest memory ---- */

/* A recorded access may lie anywhere; the compiler must not think otherwise. */
typedef uint64_t __attribute__((aligned(1))) vm_unaligned_u64;
typedef uint32_t __attribute__((aligned(1))) vm_unaligned_u32;
typedef uint16_t __attribute__((aligned(1))) vm_unaligned_u16;

static VM_ALWAYS_INLINE uint64_t vm_load_sized(uint64_t host, unsigned size)
{
    const volatile uint8_t *byte;
    uint64_t value = 0;

    if (VM_LIKELY(size == 8)) {
        return *(const volatile vm_unaligned_u64 *)(uintptr_t)host;
    }
    switch (size) {
    case 4:
        return *(const volatile vm_unaligned_u32 *)(uintptr_t)host;
    case 2:
        return *(const volatile vm_unaligned_u16 *)(uintptr_t)host;
    case 1:
        return *(const volatile uint8_t *)(uintptr_t)host;
    default: /* a part of a larger or crooked access */
        byte = (const volatile uint8_t *)(uintptr_t)host;
        for (unsigned i = 0; i < size; i++) {
            value |= (uint64_t)byte[i] << (i * 8);
        }
        return value;
    }
}

static VM_ALWAYS_INLINE void vm_store_sized(uint64_t host, unsigned size, uint64_t value)
{
    volatile uint8_t *byte;

    if (VM_LIKELY(size == 8)) {
        *(volatile vm_unaligned_u64 *)(uintptr_t)host = value;
        return;
    }
    switch (size) {
    case 4:
        *(volatile vm_unaligned_u32 *)(uintptr_t)host = (uint32_t)value;
        return;
    case 2:
        *(volatile vm_unaligned_u16 *)(uintptr_t)host = (uint16_t)value;
        return;
    case 1:
        *(volatile uint8_t *)(uintptr_t)host = (uint8_t)value;
        return;
    default:
        byte = (volatile uint8_t *)(uintptr_t)host;
        for (unsigned i = 0; i < size; i++) {
            byte[i] = (uint8_t)(value >> (i * 8));
        }
    }
}

/* ---- what was read and written ---- */

/* A part of an access that lies in one aligned word. */
struct vm_piece {
    uint64_t host;  /* address of its first byte */
    uint64_t where; /* in the dictionary, with its offset in the page */
    unsigned size;  /* 1 to 8; never past the end of the word */
};

static inline uint64_t vm_written_word(const struct vm_guest *g, const struct vm_piece *p)
{
    return g->key[p->where >> VM_PAGE_SHIFT].written +
           p->where % VM_PAGE_SIZE / 8 * VM_CONTENT_STEP;
}

/* On a page that is neither zeros nor from a file. */
static inline uint64_t vm_seeded_word(const struct vm_guest *g, const struct vm_piece *p)
{
    return vm_mix(g->key[p->where >> VM_PAGE_SHIFT].initial +
                  p->where % VM_PAGE_SIZE / 8 * VM_CONTENT_STEP);
}

static inline uint64_t vm_piece_mask(const struct vm_piece *p)
{
    return (p->size == 8 ? ~UINT64_C(0) : (UINT64_C(1) << (p->size * 8)) - 1) << (p->where % 8 * 8);
}

/* The bits of the piece in the mark of its word. */
static inline uint8_t vm_piece_marks(const struct vm_piece *p)
{
    return (uint8_t)(((1u << p->size) - 1) << (p->where % 8));
}

/* Where a host address lies; only called for addresses inside a block. */
uint32_t vm_block_of(const struct vm_guest *g, uint64_t host, uint64_t *offset);

/* Of a piece that was written in part, or of a page from a file. */
uint64_t vm_mixed_word(const struct vm_guest *g, const struct vm_piece *p, uint8_t mark);

/*
 * The value is not the one that the marks seen before the load promise. A byte that was marked must
 * be the written one: if it is the initial one, a write was lost. A byte that was not may have been
 * written meanwhile. found: the bytes at their place in the word.
 */
void vm_judge_read(struct vm_vcpu *v, const struct vm_piece *p, uint8_t mark, uint64_t found);

/*
 * The same of a value that is not the one that was expected before the load, in a guest that has
 * the image of that. What turns out to be written is expected from now on. Both: the piece's bytes,
 * the lowest.
 */
void vm_judge_unexpected(struct vm_vcpu *v, const struct vm_piece *p, uint64_t expected,
                         uint64_t found);

static inline void vm_note_written(uint64_t *written, uint64_t page)
{
    /*
     * The store has to be seen before the bit is looked at. A CPU may keep the store back for a
     * moment: the bit could still be found set, be taken, and the page be sent without the store.
     */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!vm_bit_test(written, page)) {
        vm_bit_test_and_set(written, page);
    }
}

/* What is stored there: its bytes of the word, which are the lowest. */
static inline uint64_t vm_written_value(const struct vm_guest *g, const struct vm_piece *p)
{
    return vm_written_word(g, p) >> (p->where % 8 * 8);
}

/*
 * After the store to memory, so that whoever reads what is promised here, and then the memory,
 * finds it there. Of the two promises the image comes first: who finds the mark leaves both as they
 * are, since it takes the write for expected.
 *
 *   a read        loads the image, fence (acquire), loads memory: pairs with the release fence
 *   another write stores to memory, loads the mark (acquire), stores no more: pairs with the
 * release of the mark; what it has found, and so its own reads afterwards, find the image
 *
 * A store of all bits takes the place of others' marks, and so of their releases; the image that it
 * releases has their bytes too.
 */
static inline void vm_mark_written(const struct vm_guest *g, const struct vm_piece *p,
                                   uint64_t value)
{
    uint8_t bits = vm_piece_marks(p);

    if (g->expected) {
        __atomic_thread_fence(__ATOMIC_RELEASE);
        vm_store_sized((uint64_t)(uintptr_t)&g->expected[p->where], p->size, value);
    }
    if (bits == 0xFF) {
        vm_set_release(&g->marks[p->where >> 3], bits); /* who else sets some of them loses none */
    } else {
        __atomic_fetch_or(&g->marks[p->where >> 3], bits, __ATOMIC_RELEASE);
    }
}

/* Acquire: see vm_mark_written. */
static VM_ALWAYS_INLINE bool vm_is_marked(const uint8_t *marks, uint64_t where, uint8_t bits)
{
    return (vm_get_acquire(&marks[where >> 3]) & bits) == bits;
}

static VM_ALWAYS_INLINE void vm_write_piece(const struct vm_guest *g, const struct vm_piece *p,
                                            uint64_t value)
{
    vm_store_sized(p->host, p->size, value);
    /* Most writes are to where one was before: look before paying for a locked operation. */
    if (g->marks && !vm_is_marked(g->marks, p->where, vm_piece_marks(p))) {
        vm_mark_written(g, p, value);
    }
    /* After the store: whoever takes the bit and sends the page then sends what was stored. */
    if (VM_UNLIKELY(g->written != NULL)) {
        vm_note_written(g->written, p->where >> VM_PAGE_SHIFT);
    }
}

#endif
