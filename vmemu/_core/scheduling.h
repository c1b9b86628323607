/* What a thread asks of the scheduler. */
#ifndef VM_SCHEDULING_H
#define VM_SCHEDULING_H

/*
 * The calling thread answers faults: whoever is running is interrupted when it is woken, since a
 * short slice comes first. Needs no privilege; kernels before 6.12 know no slices of a thread, and
 * there nothing changes.
 */
void vm_schedule_urgent(void);

/* The calling thread moves what nobody waits for: woken, it interrupts nobody. */
void vm_schedule_bulk(void);

#endif
