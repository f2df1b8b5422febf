//! Programs of 32 bits: they run, and are refused what others are refused.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::containers::Rig;

/// A static 32-bit program that makes one system call of four arguments and ends with the negated answer: 0, or the
/// number of the error. Source: elf(5); Intel's manual, volume 2.
fn program(call: u32, arguments: [u32; 3]) -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    const HEADERS: u32 = 52 + 32;
    let mut code = Vec::new();
    // mov eax, ebx, ecx, edx; int 0x80.
    for (register, value) in [0xb8, 0xbb, 0xb9, 0xba].into_iter().zip([call].into_iter().chain(arguments)) {
        code.push(register);
        code.extend(value.to_le_bytes());
    }
    code.extend([0xcd, 0x80]);
    // xor ebx, ebx; test eax, eax; jns +4; mov ebx, eax; neg ebx; mov eax, 1 (exit); int 0x80.
    code.extend([0x31, 0xdb, 0x85, 0xc0, 0x79, 0x04, 0x89, 0xc3, 0xf7, 0xdb, 0xb8, 1, 0, 0, 0, 0xcd, 0x80]);
    let size = HEADERS + u32::try_from(code.len()).unwrap();
    let mut file = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0];
    file.resize(16, 0);
    let halves =
        |file: &mut Vec<u8>, values: &[u16]| file.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    let words = |file: &mut Vec<u8>, values: &[u32]| file.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    // Executable, of the 386; entry, program headers, no sections, no flags.
    halves(&mut file, &[2, 3]);
    words(&mut file, &[1, BASE + HEADERS, 52, 0, 0]);
    halves(&mut file, &[52, 32, 1, 40, 0, 0]);
    // One part, readable and executable, all of the file.
    words(&mut file, &[1, 0, BASE, BASE, size, size, 5, 0x1000]);
    file.extend(code);
    file
}

#[test]
fn programs_of_32_bits_run_and_are_filtered_too() {
    if cfg!(not(target_arch = "x86_64")) {
        return;
    }
    let rig = Rig::new();
    let mut number = 0;
    let mut run = |call: u32, arguments: [u32; 3]| {
        let path = rig.path("layer/bin/old");
        fs::write(&path, program(call, arguments)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        number += 1;
        let mut request = rig.script(&format!("shop.{number}"), "");
        request.spec.command = Some(vec!["/bin/old".into()]);
        rig.run(&request).0.code
    };
    assert_eq!(run(20, [0; 3]), Some(0), "getpid");
    // An argument that cannot be shows that the kernel itself answered: EFAULT, EBADF, EAFNOSUPPORT.
    assert_eq!(run(5, [0, 0, 0]), Some(14), "open");
    assert_eq!(run(3, [99, 0, 0]), Some(9), "read");
    assert_eq!(run(359, [2, 1, 0]), Some(0), "socket of TCP");
    assert_eq!(run(21, [0, 0, 0]), Some(1), "mount");
    assert_eq!(run(288, [0, 0, 0]), Some(1), "keyctl");
    assert_eq!(run(310, [0x1000_0000, 0, 0]), Some(1), "unshare");
    assert_eq!(run(359, [40, 1, 0]), Some(1), "socket of AF_VSOCK");
    assert_eq!(run(359, [38, 5, 0]), Some(1), "socket of AF_ALG");
    // The same by way of socketcall(2), whose arguments no filter sees.
    assert_eq!(run(102, [1, 0, 0]), Some(38), "socketcall");
    assert_eq!(run(467, [0, 0, 0]), Some(38), "a call that is not known yet");
}
