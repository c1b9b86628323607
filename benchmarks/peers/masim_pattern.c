/*
 * What masim's loops do on one region, since masim itself is in no distribution: batches of reads
 * of single bytes, a stride apart and again from the start at the region's end, or anywhere by
 * numbers that rand() gave before; after each batch the clock is read. A write of every byte comes
 * first, as masim does too, so that no read faults.
 *
 *     masim_pattern sequential|random BYTES STRIDE ACCESSES
 *
 * prints {"ns_per_access": ...}.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BATCH = 512, NUMBERS = 1000, LISTS = 1000 };

static int numbers[LISTS][NUMBERS];

struct walk {
    volatile const char *region;
    size_t bytes, stride, offset;
};

typedef void (*batch_fn)(struct walk *walk, int count);

static int next_number(void)
{
    static int list, at;

    if (at == NUMBERS) {
        list = rand() % LISTS;
        at = 0;
    }
    return numbers[list][at++];
}

static void read_sequential(struct walk *walk, int count)
{
    size_t offset = walk->offset;

    for (int i = 0; i < count; i++) {
        offset += walk->stride;
        if (offset >= walk->bytes) {
            offset = 0;
        }
        (void)walk->region[offset];
    }
    walk->offset = offset;
}

static void read_random(struct walk *walk, int count)
{
    for (int i = 0; i < count; i++) {
        (void)walk->region[(size_t)next_number() % walk->bytes];
    }
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

int main(int argc, char **argv)
{
    if (argc != 5) {
        fprintf(stderr, "masim_pattern sequential|random BYTES STRIDE ACCESSES\n");
        return 2;
    }
    /* Kept from the compiler, as in masim a pattern is chosen for each batch. */
    batch_fn volatile batch = strcmp(argv[1], "random") ? read_sequential : read_random;
    struct walk walk = {.bytes = strtoull(argv[2], NULL, 10),
                        .stride = strtoull(argv[3], NULL, 10)};
    uint64_t accesses = strtoull(argv[4], NULL, 10), done = 0, begin, end;
    char *region = malloc(walk.bytes);

    if (region == NULL) {
        fprintf(stderr, "no memory for the region\n");
        return 3;
    }
    memset(region, 1, walk.bytes);
    walk.region = region;
    for (int i = 0; i < LISTS; i++) {
        for (int j = 0; j < NUMBERS; j++) {
            numbers[i][j] = rand();
        }
    }
    begin = end = now_ns();
    for (; done < accesses; done += BATCH) {
        batch(&walk, BATCH);
        end = now_ns();
    }
    printf("{\"ns_per_access\": %.4f}\n", (double)(end - begin) / (double)done);
    free(region);
    return 0;
}
