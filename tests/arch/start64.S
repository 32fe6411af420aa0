/* Multiboot entry, the switch to long mode, exception stubs, and `run`: see kernel64.h. */
    .section .multiboot, "a"
    .align 4
    .long 0x1badb002, 0, -0x1badb002

    .bss
    .align 4096
    .globl pml4, pdpt, pd_low, pd_user, pd_high
pml4:    .skip 4096
pdpt:    .skip 4096
pd_low:  .skip 4096
pd_user: .skip 4096
pd_high: .skip 4096
    .skip 65536
stack_end:
    .skip 16384
    .globl rsp0_stack_end
rsp0_stack_end:

    .text
    .code32
    .globl _start
_start:
    cld
    cli
    mov $stack_end, %esp
    /* 0..1 GiB for the kernel; 1..2 GiB shows 0..1 GiB to the user; 3..4 GiB is the devices'. */
    movl $pdpt + 7, pml4
    movl $pd_low + 7, pdpt
    movl $pd_user + 7, pdpt + 8
    movl $pd_high + 7, pdpt + 24
    xor %ecx, %ecx
1:  mov %ecx, %eax
    shl $21, %eax
    or $0x83, %eax
    mov %eax, pd_low(, %ecx, 8)
    or $0x87, %eax
    mov %eax, pd_user(, %ecx, 8)
    add $0xc0000000, %eax
    and $~7, %eax
    or $0x9b, %eax
    mov %eax, pd_high(, %ecx, 8)
    inc %ecx
    cmp $512, %ecx
    jb 1b
    mov $pml4, %eax
    mov %eax, %cr3
    mov $0x620, %eax            /* PAE, OSFXSR, OSXMMEXCPT */
    mov %eax, %cr4
    mov $0xc0000080, %ecx
    rdmsr
    or $0x901, %eax             /* NXE, LME, SCE */
    wrmsr
    mov $0x80010033, %eax       /* PG, WP, NE, ET, MP, PE */
    mov %eax, %cr0
    lgdt gdt_pointer
    ljmp $8, $1f
    .code64
1:  mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %eax, %fs
    mov %eax, %gs
    call setup
    call kernel_main
    call done

    .globl stub_base
    .align 16
stub_base:
    vector = 0
    .rept 256
    .align 16
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
    pushq $0
    .endif
    pushq $vector
    jmp trap_common
    vector = vector + 1
    .endr
    .align 16

trap_common:
    push %r15
    push %r14
    push %r13
    push %r12
    push %r11
    push %r10
    push %r9
    push %r8
    push %rdi
    push %rsi
    push %rbp
    push %rbx
    push %rdx
    push %rcx
    push %rax
    cld
    mov %rsp, %rdi
    mov %rsp, %rbx
    and $-16, %rsp
    call trap_entry
    mov %rbx, %rsp
    test %eax, %eax
    jnz unwind
    pop %rax
    pop %rcx
    pop %rdx
    pop %rbx
    pop %rbp
    pop %rsi
    pop %rdi
    pop %r8
    pop %r9
    pop %r10
    pop %r11
    pop %r12
    pop %r13
    pop %r14
    pop %r15
    add $16, %rsp
    iretq

    .globl unwind
unwind:
    mov run_rsp(%rip), %rsp
    jmp run_exit

    .macro run_enter
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    pushfq
    mov %rsp, run_rsp(%rip)
    mov %rdi, run_code(%rip)
    movl $1, run_armed(%rip)
    movl $-1, trap(%rip)
    .endm
    .macro run_load
    mov in+0(%rip), %rax
    mov in+8(%rip), %rcx
    mov in+16(%rip), %rdx
    mov in+24(%rip), %rbx
    mov in+32(%rip), %rbp
    mov in+40(%rip), %rsi
    mov in+48(%rip), %rdi
    mov in+56(%rip), %r8
    mov in+64(%rip), %r9
    mov in+72(%rip), %r10
    mov in+80(%rip), %r11
    mov in+88(%rip), %r12
    mov in+96(%rip), %r13
    mov in+104(%rip), %r14
    mov in+112(%rip), %r15
    .endm

    .globl run, run_user, run_exit
run:
    run_enter
    run_load
    call *run_code(%rip)
    .globl run_return
run_return:
    mov %rax, out+0(%rip)
    mov %rcx, out+8(%rip)
    mov %rdx, out+16(%rip)
    mov %rbx, out+24(%rip)
    mov %rbp, out+32(%rip)
    mov %rsi, out+40(%rip)
    mov %rdi, out+48(%rip)
    mov %r8, out+56(%rip)
    mov %r9, out+64(%rip)
    mov %r10, out+72(%rip)
    mov %r11, out+80(%rip)
    mov %r12, out+88(%rip)
    mov %r13, out+96(%rip)
    mov %r14, out+104(%rip)
    mov %r15, out+112(%rip)
    pushfq
    pop out+120(%rip)
run_exit:
    movl $0, run_armed(%rip)
    mov $0x10, %eax
    mov %eax, %ss
    mov %eax, %ds
    mov %eax, %es
    cld
    popfq
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    mov trap(%rip), %eax
    ret

run_user:
    run_enter
    mov user_data(%rip), %eax
    mov %eax, %ds
    mov %eax, %es
    push %rax
    push user_rsp(%rip)
    push user_rflags(%rip)
    mov user_code(%rip), %eax
    push %rax
    push %rdi
    run_load
    iretq
    .section .note.GNU-stack, "", @progbits
