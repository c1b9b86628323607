/* What it costs to wake a thread that sleeps: most of a fault, where its parts run on two CPUs. */
#ifndef VM_WAKEUP_H
#define VM_WAKEUP_H

#include <stdint.h>

#include "error.h"

/*
 * A thread on waker_cpu wakes one on sleeper_cpu, which sleeps in a read of an eventfd, rounds
 * times; took_ns[i] is from before the write until after the read. pause_ns before each lets the
 * sleeper and its CPU come to rest. 0, or -1: took_ns is then not to be used.
 */
int vm_wakeup(int waker_cpu, int sleeper_cpu, uint32_t rounds, uint64_t pause_ns, uint64_t *took_ns,
              struct vm_error *err);

#endif
