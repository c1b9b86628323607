#include "pagemap.h"

#include <errno.h>
#include <sys/ioctl.h>

#include "access.h"
#include "pagemap_abi.h"
#include "util.h"

enum { REGIONS = 256 };

static void set_bits(uint64_t *map, uint64_t first, uint64_t end)
{
    for (uint64_t page = first; page < end; page++) {
        vm_bit_test_and_set(map, page);
    }
}

/*
 * One step of a scan, which ends early when the regions are full: from scan->walk_end on it goes
 * on. The number of regions, or -1.
 */
static int scan_on(int pagemap, struct pm_scan *scan, struct vm_error *err)
{
    int found = ioctl(pagemap, PM_SCAN_IOCTL, scan);

    if (found < 0) {
        return vm_fail_errno(err, "PAGEMAP_SCAN", scan->start);
    }
    if (scan->walk_end <= scan->start) {
        errno = EIO; /* it would go on for ever */
        return vm_fail_errno(err, "PAGEMAP_SCAN that gets nowhere", scan->start);
    }
    return found;
}

int vm_pagemap_harvest(int pagemap, uint64_t start, uint64_t length, uint64_t *map,
                       struct vm_error *err)
{
    struct pm_region region[REGIONS];
    struct pm_scan scan = {
        .size = sizeof(scan),
        .flags = PM_WP_MATCHING | PM_CHECK_WPASYNC,
        .end = start + length,
        .vec = (uintptr_t)region,
        .vec_len = REGIONS,
        .category_mask = PM_PAGE_IS_WRITTEN,
        .return_mask = PM_PAGE_IS_WRITTEN,
    };

    /* What the regions had no room for is not protected. */
    for (scan.start = start; scan.start < scan.end; scan.start = scan.walk_end) {
        int found = scan_on(pagemap, &scan, err);

        if (found < 0) {
            return -1;
        }
        for (int i = 0; i < found; i++) {
            set_bits(map, (region[i].start - start) >> VM_PAGE_SHIFT,
                     (region[i].end - start) >> VM_PAGE_SHIFT);
        }
    }
    return 0;
}

int vm_pagemap_huge(int pagemap, uint64_t start, uint64_t length, uint64_t *bytes,
                    struct vm_error *err)
{
    struct pm_region region[REGIONS];
    struct pm_scan scan = {
        .size = sizeof(scan),
        .end = start + length,
        .vec = (uintptr_t)region,
        .vec_len = REGIONS,
        .category_mask = PM_PAGE_IS_HUGE,
        .return_mask = PM_PAGE_IS_HUGE,
    };

    *bytes = 0;
    for (scan.start = start; scan.start < scan.end; scan.start = scan.walk_end) {
        int found = scan_on(pagemap, &scan, err);

        if (found < 0) {
            return -1;
        }
        for (int i = 0; i < found; i++) {
            *bytes += region[i].end - region[i].start;
        }
    }
    return 0;
}
