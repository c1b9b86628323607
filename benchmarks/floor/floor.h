/*
 * The floor: the shortest correct C program for each path of a page, to hold vmemu against. Every
 * program checks what it read. Where it may run is inherited (taskset), or --spread.
 */
#ifndef FLOOR_H
#define FLOOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/types.h>

/*
 * A header ahead of pages shifts them in the pipe's own pages. By less than 32 bytes, and copying
 * in and out takes twice as long on some CPUs: loads then look to them as if they were of bytes
 * just stored, as addresses are compared by their offset in a page first.
 */
enum { BASE_PAGE = 4096, WORD = sizeof(uint64_t), HEADER = 64 };

/* ---- failures (util.c) ---- */

/* This host can't: ends with 3, and so the row is skipped. */
_Noreturn void not_here(const char *what);
/* It should have worked: ends with 1. */
_Noreturn void failed(const char *what);

/* ---- what pages hold (util.c) ---- */

/* The finaliser of splitmix64: no two words are equal. */
static inline uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94D049BB133111EB);
    return x ^ (x >> 31);
}

void fill(uint64_t *memory, size_t bytes);
/* Ends the program when a byte is wrong. */
void check(const uint64_t *memory, size_t bytes);

/* ---- the machine (util.c) ---- */

uint64_t now_ns(void);
/* Fresh memory of small pages, or with huge of 2 MiB pages of the pool, reserved. */
uint8_t *map_private(size_t bytes, bool huge);
/* Of transparent hugepages where there are any: they are lent to a pipe, and read, at less cost. */
uint8_t *map_image(size_t bytes);
uint8_t *map_shared(size_t bytes, int *fd);
/* Pipe of 1 MiB, or as large as this user may have. */
void make_pipe(int ends[2]);
void write_all(int fd, const void *from, size_t bytes);
/*
 * Pages behind a header. A single small one is copied behind it, which takes less than a second
 * call or part. Others are lent to the pipe, which then holds them and no copy: nobody writes to
 * them.
 */
void send_pages(int fd, const void *header, const void *pages, size_t bytes);
/* False at the end of the stream. */
bool read_all(int fd, void *to, size_t bytes);
/* On the first of the CPUs it may use, or on the last. */
void pin_first(void);
void pin_last(void);
/* A child that ends with its owner; 0 in the child. */
pid_t fork_bound(void);
/* Ends the program unless the child has ended with 0. */
void wait_for(pid_t child);

/* ---- userfaultfd (uffd.c) ---- */

int uffd_open(uint64_t features);
void uffd_register(int uffd, void *memory, size_t bytes, uint64_t mode);
/* Waits for a fault; its address. */
uint64_t uffd_next(int uffd);
void uffd_place(int uffd, void *to, const void *from, size_t bytes, bool wake);
void uffd_map(int uffd, void *at, size_t bytes);

/* ---- the programs; each prints one line of JSON ---- */

struct options {
    const char *kind;  /* of the path */
    uint64_t pages;    /* of a fault's area, or of replay's trace */
    uint64_t bytes;    /* of bulk */
    const char *trace; /* of replay: a directory */
    bool huge, spread, checked;
};

void run_faults(const struct options *o);
void run_bulk(const struct options *o);
void run_resident(const struct options *o);

#endif
