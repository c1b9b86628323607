/* What the function of perf script's lines keeps in `memory` of struct vm_text. */
#ifndef VM_TEXT_PERF_H
#define VM_TEXT_PERF_H

enum vm_perf_memory {
    VM_PERF_FAMILY,    /* enum vm_perf_family of the first access, which is that of all */
    VM_PERF_FIELDS,    /* of its line: VM_PERF_HAS_*, the same for all */
    VM_PERF_ADDRESSES, /* lines of faults with an address, left out or not */
    VM_PERF_PERIOD,    /* the largest seen: more than 1, and there were more faults than lines */
};

/* Fault events that never show the same fault twice. */
enum vm_perf_family {
    VM_PERF_NONE,
    VM_PERF_SOFTWARE,    /* page-faults */
    VM_PERF_MINOR_MAJOR, /* minor-faults, major-faults: page-faults has them all once more */
    VM_PERF_EXCEPTIONS,  /* exceptions:page_fault_user, exceptions:page_fault_kernel */
    VM_PERF_KVM,         /* kvm:kvm_page_fault */
};

enum { VM_PERF_HAS_TIME = 1, VM_PERF_HAS_THREAD = 2, VM_PERF_FIELDS_KNOWN = 4 };

/* Indices of `dropped`. */
enum vm_perf_dropped { VM_PERF_KERNEL_ADDRESS, VM_PERF_OTHER_EVENT, VM_PERF_NO_ADDRESS };

#endif
