/*
 * The accesses of a trace on resident memory: columns mapped from files, a page table as pages may
 * lie anywhere, and a load or a store of 8 aligned bytes. With --checked each load is compared with
 * what must be there: what it was at first, or what a store has made of it, which is marked.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "floor.h"

enum { STORE = 1 };

#define WRITTEN UINT64_C(0x632BE59BD9B4E019)

struct column {
    const uint8_t *data;
    size_t bytes;
};

/* numpy's format 1.0: six bytes and two of version, the header's length in two bytes, the header.
 */
static struct column map_column(const char *trace, const char *name)
{
    char path[4096];
    struct stat status;
    const uint8_t *file;
    size_t header;
    int fd;

    snprintf(path, sizeof(path), "%s/%s", trace, name);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status)) {
        failed(path);
    }
    file = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (file == MAP_FAILED) {
        failed(path);
    }
    close(fd);
    header = 10 + (file[8] | (size_t)file[9] << 8);
    return (struct column){file + header, (size_t)status.st_size - header};
}

static uint64_t replay(const uint32_t *where, const uint8_t *what, size_t count,
                       uint8_t *const *page)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < count; i++) {
        volatile uint64_t *word = (uint64_t *)(page[where[i] >> 12] + where[i] % BASE_PAGE);

        if (what[i] & STORE) {
            *word = WRITTEN;
        } else {
            sum += *word;
        }
    }
    return sum;
}

/* The same, of words that are mix(number of the word + 1) until they are written. */
static uint64_t replay_checked(const uint32_t *where, const uint8_t *what, size_t count,
                               uint8_t *const *page, uint8_t *marks)
{
    uint64_t wrong = 0;

    for (size_t i = 0; i < count; i++) {
        volatile uint64_t *word = (uint64_t *)(page[where[i] >> 12] + where[i] % BASE_PAGE);
        uint64_t number = where[i] / WORD;

        if (what[i] & STORE) {
            *word = mix(number + WRITTEN);
            marks[number] = 1;
        } else {
            wrong += *word != mix(number + (marks[number] ? WRITTEN : 1));
        }
    }
    return wrong;
}

void run_resident(const struct options *o)
{
    struct column where = map_column(o->trace, "0.where.npy"),
                  what = map_column(o->trace, "0.what.npy"),
                  pages = map_column(o->trace, "pages.npy");
    size_t count = what.bytes, page_count = pages.bytes / sizeof(uint64_t);
    uint8_t *ram = map_private(page_count * BASE_PAGE, false), *marks, **page;
    uint64_t begin, took, result;

    marks = calloc(page_count, BASE_PAGE / WORD);
    page = calloc(page_count, sizeof(*page));
    if (!marks || !page || where.bytes != count * sizeof(uint32_t)) {
        failed("no trace with 32 bits of place an access, or no memory");
    }
    memset(marks, 0, page_count * (BASE_PAGE / WORD));
    fill((uint64_t *)ram, page_count * BASE_PAGE);
    for (size_t i = 0; i < page_count; i++) {
        page[i] = ram + i * BASE_PAGE;
    }
    begin = now_ns();
    if (o->checked) {
        result = replay_checked((const uint32_t *)where.data, what.data, count, page, marks);
    } else {
        result = replay((const uint32_t *)where.data, what.data, count, page);
    }
    took = now_ns() - begin;
    if (o->checked && result) {
        failed("a load found what it must not");
    }
    printf("{\"accesses\": %zu, \"total_ns\": %llu, \"ns_per_access\": %.4f}\n", count,
           (unsigned long long)took, (double)took / (double)count);
}
