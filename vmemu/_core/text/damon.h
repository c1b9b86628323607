/* What the function of DAMON's lines keeps in `memory` of struct vm_text. */
#ifndef VM_TEXT_DAMON_H
#define VM_TEXT_DAMON_H

enum vm_damon_memory {
    VM_DAMON_EVENT,   /* which of DAMON's events is read, from 1: that of the first region */
    VM_DAMON_HIGHEST, /* the end of the highest region, accessed or not */
};

/* Indices of `dropped`. */
enum vm_damon_dropped { VM_DAMON_OTHER_EVENT };

#endif
