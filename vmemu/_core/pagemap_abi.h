/*
 * The part of the kernel's PAGEMAP_SCAN interface that vmemu uses, written out from the manual page
 * PAGEMAP_SCAN(2const): Linux 6.7 has it, a distribution's <linux/fs.h> may be older.
 */
#ifndef VM_PAGEMAP_ABI_H
#define VM_PAGEMAP_ABI_H

#include <linux/types.h>
#include <sys/ioctl.h>

enum {
    PM_PAGE_IS_WRITTEN = 1 << 1, /* since it was write-protected last */
    PM_PAGE_IS_HUGE = 1 << 6,    /* mapped as part of a hugepage, transparent or not */
};

enum {
    PM_WP_MATCHING = 1 << 0,   /* write-protect what is reported, in the same step */
    PM_CHECK_WPASYNC = 1 << 1, /* EPERM where writes are not tracked, instead of a wrong answer */
};

struct pm_region {
    __u64 start;
    __u64 end;
    __u64 categories;
};

struct pm_scan {
    __u64 size; /* of this structure */
    __u64 flags;
    __u64 start;
    __u64 end;
    __u64 walk_end; /* out: how far it came */
    __u64 vec;      /* struct pm_region[] */
    __u64 vec_len;
    __u64 max_pages; /* 0: no limit */
    __u64 category_inverted;
    __u64 category_mask;
    __u64 category_anyof_mask;
    __u64 return_mask;
};

_Static_assert(sizeof(struct pm_region) == 24, "struct page_region is kernel interface");
_Static_assert(sizeof(struct pm_scan) == 96, "struct pm_scan_arg is kernel interface");

#define PM_SCAN_IOCTL _IOWR('f', 16, struct pm_scan) /* on /proc/PID/pagemap */

#endif
