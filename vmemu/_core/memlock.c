#include "memlock.h"

#include <stddef.h>
#include <sys/mman.h>

int vm_mlock(uint64_t address, uint64_t length, struct vm_error *err)
{
    return mlock((void *)(uintptr_t)address, length) < 0 ? vm_fail_errno(err, "mlock", address) : 0;
}

int vm_munlock(uint64_t address, uint64_t length, struct vm_error *err)
{
    return munlock((void *)(uintptr_t)address, length) < 0 ? vm_fail_errno(err, "munlock", address)
                                                           : 0;
}

int vm_mlockall(struct vm_error *err)
{
    return mlockall(MCL_CURRENT | MCL_FUTURE) < 0 ? vm_fail_errno(err, "mlockall", 0) : 0;
}

int vm_munlockall(struct vm_error *err)
{
    return munlockall() < 0 ? vm_fail_errno(err, "munlockall", 0) : 0;
}
