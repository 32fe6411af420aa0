/* Multiboot entry for protected mode, exception stubs, `run`, and the ways to real and v86 mode. */
    .section .multiboot, "a"
    .align 4
    .long 0x1badb002, 0, -0x1badb002

    .bss
    .align 4096
    .skip 65536
stack_end:
    .skip 16384
    .globl esp0_stack_end
esp0_stack_end:

    .text
    .code32
    .globl _start
_start:
    cld
    cli
    mov $stack_end, %esp
    mov $0x31, %eax             /* NE, ET, PE */
    mov %eax, %cr0
    mov $0x600, %eax            /* OSFXSR, OSXMMEXCPT */
    mov %eax, %cr4
    lgdt gdt_pointer
    ljmp $8, $1f
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
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17)
    pushl $0
    .endif
    pushl $vector
    jmp trap_common
    vector = vector + 1
    .endr
    .align 16
trap_common:
    pusha
    mov %ds, %ebx
    mov %es, %esi
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    cld
    mov %esp, %eax
    push %eax
    call trap_entry
    pop %ecx
    test %eax, %eax
    jnz unwind
    mov %ebx, %ds
    mov %esi, %es
    popa
    add $8, %esp
    iret
unwind:
    mov run_esp, %esp
    jmp run_exit

    .globl run, run_user, run_v86, run_exit
run:
    mov 4(%esp), %eax
    push %ebx
    push %ebp
    push %esi
    push %edi
    pushf
    mov %esp, run_esp
    mov %eax, run_code
    movl $1, run_armed
    movl $-1, trap
    mov in+0, %eax
    mov in+4, %ecx
    mov in+8, %edx
    mov in+12, %ebx
    mov in+16, %ebp
    mov in+20, %esi
    mov in+24, %edi
    call *run_code
    mov %eax, out+0
    mov %ecx, out+4
    mov %edx, out+8
    mov %ebx, out+12
    mov %ebp, out+16
    mov %esi, out+20
    mov %edi, out+24
run_exit:
    movl $0, run_armed
    mov $0x10, %eax
    mov %eax, %ss
    mov %eax, %ds
    mov %eax, %es
    cld
    popf
    pop %edi
    pop %esi
    pop %ebp
    pop %ebx
    mov trap, %eax
    ret

run_user:
    mov 4(%esp), %eax
    push %ebx
    push %ebp
    push %esi
    push %edi
    pushf
    mov %esp, run_esp
    movl $1, run_armed
    movl $-1, trap
    mov $0x23, %ecx
    mov %ecx, %ds
    mov %ecx, %es
    push %ecx
    push %ss:user_esp
    push %ss:user_eflags
    push $0x1b
    push %eax
    mov %ss:in+0, %eax
    mov %ss:in+4, %ecx
    mov %ss:in+8, %edx
    mov %ss:in+12, %ebx
    mov %ss:in+16, %ebp
    mov %ss:in+20, %esi
    mov %ss:in+24, %edi
    iret

    /* v86 at 0x800:0 with stack 0x900:0x1000. */
run_v86:
    push %ebx
    push %ebp
    push %esi
    push %edi
    pushf
    mov %esp, run_esp
    movl $1, run_armed
    movl $-1, trap
    push $0x1004
    push $0x1003
    push $0x1002
    push $0x1001
    push $0x900
    push $0x1000
    push user_eflags
    push $0x800
    push $0
    iret

    /* Real mode: copied to 0x7000; result in real_result. */
    .globl run_real
run_real:
    push %ebx
    push %ebp
    push %esi
    push %edi
    pushf
    mov %esp, run_esp
    sidt saved_idt
    mov $real_start, %esi
    mov $0x7000, %edi
    mov $(real_end - real_start), %ecx
    rep movsb
    ljmp $0x38, $0x7000
real_back:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %eax, %fs
    mov %eax, %gs
    mov run_esp, %esp
    lidt saved_idt
    popf
    pop %edi
    pop %esi
    pop %ebp
    pop %ebx
    ret

#define AT(label) (0x7000 + label - real_start)
    .code16
real_start:
    mov $0x40, %ax              /* 16-bit data: limits of 64 KiB */
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov %ax, %fs
    mov %ax, %gs
    mov %cr0, %eax
    and $~1, %al
    mov %eax, %cr0
    ljmp $0, $AT(real)
real:
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x6000, %sp
    lidtl AT(real_idt)
    /* INT 0x40 and its frame. */
    movw $AT(real_int), 0x100
    movw $0, 0x102
    sti
    stc
    int $0x40
after_int:
    cli
    mov %ax, AT(results)        /* handler saw: IP */
    mov %bx, AT(results) + 2    /* CS */
    mov %cx, AT(results) + 4    /* FLAGS pushed */
    mov %dx, AT(results) + 6    /* FLAGS inside */
    /* DIV by zero pushes its own address. */
    movw $AT(real_int), 0
    movw $0, 2
    xor %cx, %cx
    xor %ax, %ax
real_div:
    movw $AT(real_divided), AT(real_skip)
    div %cx
real_divided:
    mov %ax, AT(results) + 8
    movw $0, AT(real_skip)
    /* Segment wrap: a word at 0xffff is #GP (13); offsets wrap at 64 KiB. */
    movw $AT(real_int), 13 * 4
    movw $0, 13 * 4 + 2
    movw $AT(real_wrapped), AT(real_skip)
    mov $0xffff, %bx
    mov (%bx), %ax
real_wrapped:
    mov %ax, AT(results) + 10
    movw $0, AT(real_skip)
    mov $0x1234, %ax
    mov %ax, 0x5000
    mov $0xfff0, %bx
    mov $0, %ax
    movb $0x77, 0x5
    mov 0x15(%bx), %al          /* 0xfff0 + 0x15 wraps to 5 */
    mov %ax, AT(results) + 12
    /* Segment arithmetic: 0x500:0 is 0x5000. */
    mov $0x500, %ax
    mov %ax, %es
    mov %es:0, %ax
    mov %ax, AT(results) + 14
    /* A 32-bit operand and address in 16-bit code; PUSHF/POPF; SP wraps. */
    mov $0x12345678, %eax
    mov $0x5100, %ebx
    mov %eax, (%ebx)
    mov 2(%ebx), %ax
    mov %ax, AT(results) + 16
    mov %sp, %cx
    mov $0, %sp
    push %ax
    mov %sp, %ax
    mov %cx, %sp
    mov %ax, AT(results) + 18
    /* Real addresses above 1 MiB: 0xffff:0x10 is 0x100000 with A20 on. */
    mov $0xffff, %ax
    mov %ax, %es
    mov %es:0x10, %eax
    mov %eax, AT(results) + 20
    /* Back. */
    lgdtl AT(real_gdt)
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $8, $real_back
real_int:
    push %bp
    mov %sp, %bp
    mov 2(%bp), %ax
    mov 4(%bp), %bx
    mov 6(%bp), %cx
    pushf
    pop %dx
    cmpw $0, %cs:AT(real_skip)
    je 1f
    push %ax
    mov %cs:AT(real_skip), %ax
    mov %ax, 2(%bp)
    pop %ax
1:  pop %bp
    iret
real_skip: .word 0
real_idt:
    .word 0x3ff
    .long 0
real_gdt:
    .word 0xff
    .long gdt
results: .skip 32
real_end:
    .code32
    .globl real_results, real_after_int, real_division, real_wrap
real_results = AT(results)
real_after_int = AT(after_int)
    .data
    .align 4
saved_idt: .skip 8
real_division: .long AT(real_divided) - 2
real_wrap: .long AT(real_wrapped) - 2
    .section .note.GNU-stack, "", @progbits
