//! A guest without an operating system of the harness: its firmware looks for boot code on its disk, as every virtual machine's does.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Guest, drive, run_qemu};
use crate::node::Node;

/// Block of the boot disk that has the text, as the firmware counts: 512 bytes each.
const TEXT: u64 = 8;
/// Block that the boot code writes the text to.
const COPY: u64 = 16;
/// What the boot code says by way of `isa-debug-exit`: it read the text, told it, and wrote it.
const WENT_WELL: u8 = 0x10;
/// Where the boot code finds this.
const LOADED_AT: u16 = 0x7c00;
const BUFFER_AT: u16 = 0x8000;

/// What became of such a guest.
#[derive(Debug)]
pub struct Booted {
    /// What firmware and boot code printed on the serial console.
    pub console: String,
    /// The boot code ran to its end and met no error.
    pub went_well: bool,
    code: i32,
}

impl Booted {
    /// The firmware found nothing to start, and the guest went off.
    pub fn found_nothing(&self) -> bool {
        self.code == 0 && self.console.contains("Boot failed: not a bootable disk")
    }
}

impl Guest {
    /// What goes to the start of a disk so that a guest boots from it: boot code in the first block and the text for it. The code has the
    /// firmware read the text from the disk, prints it on the serial port, and has it written to [`Guest::copy_at`].
    ///
    /// It is a few instructions made for tests and no boot loader: what it shows is that firmware reads, runs and writes the disk.
    ///
    /// # Errors
    /// When the text is longer than one block.
    pub fn boot_disk(text: &str) -> Result<Vec<u8>> {
        ensure!(text.is_ascii() && text.len() < 512, "{text:?} is too long");
        let mut disk = boot_code();
        disk.resize(usize::try_from(COPY)? * 512, 0);
        let at = usize::try_from(TEXT)? * 512;
        disk[at..at + text.len()].copy_from_slice(text.as_bytes());
        Ok(disk)
    }

    /// Where the text of [`Guest::boot_disk`] is on the disk once it booted, in bytes.
    pub const fn copy_at() -> u64 {
        COPY * 512
    }

    /// Switches on a guest on `node` with `disk` as its only one, of which its firmware starts what it finds there. It goes off by itself
    /// when the boot code has ended, or when there is none.
    ///
    /// # Errors
    /// When QEMU cannot open the disk, or the guest takes longer than `limit`; with the end of its console.
    pub async fn boot_from(node: &Node, disk: &str, limit: Duration) -> Result<Booted> {
        let shared = Self::shared(node)?;
        // `graphics=off` has the firmware print on the serial port; a guest that finds nothing to start resets, and `-no-reboot` ends it.
        let mut words: Vec<String> =
            "qemu-system-x86_64 -M pc,i8042=off,hpet=off,graphics=off -accel tcg,tb-size=32 -m 64 -smp 1 -nodefaults -no-user-config \
             -display none -net none -no-reboot -boot strict=on,reboot-timeout=1 -device isa-debug-exit,iobase=0xf4,iosize=1"
                .split_whitespace()
                .map(Into::into)
                .collect();
        words.extend([
            "-serial".into(),
            format!("file:{}/console", shared.inside),
            "-device".into(),
            "virtio-blk-pci,drive=disk0,bootindex=0".into(),
        ]);
        words.extend(drive(0, disk));
        let output = run_qemu(node, &shared, &words, limit).await?;
        let console = fs::read(shared.path().join("console")).unwrap_or_default();
        let console = String::from_utf8_lossy(&console).into_owned();
        // QEMU ends with twice the number and one; its own errors are 1.
        let went_well = output.code == i32::from(WENT_WELL) * 2 + 1;
        ensure!(
            went_well || output.code == 0,
            "the guest on {} ended with {}{}\n{}\nits console:\n{console}",
            node.name(),
            output.code,
            super::stopped(output.code, limit),
            output.stderr
        );
        Ok(Booted {
            console,
            went_well,
            code: output.code,
        })
    }
}

/// The first block of a boot disk, for a processor in real mode; `DL` is the firmware's number of the disk.
fn boot_code() -> Vec<u8> {
    let [buffer, buffer_high] = BUFFER_AT.to_le_bytes();
    let packet = LOADED_AT + 0x4f;
    let [at, at_high] = packet.to_le_bytes();
    let [block, block_high] = (packet + 8).to_le_bytes();
    let parts: &[&[u8]] = &[
        &[0x31, 0xc0],                                // 00 xor ax, ax
        &[0x8e, 0xd8],                                // 02 mov ds, ax
        &[0x8e, 0xd0],                                // 04 mov ss, ax
        &[0xbc, 0x00, 0x7c],                          // 06 mov sp, 0x7c00
        &[0xea, 0x0e, 0x7c, 0x00, 0x00], // 09 jmp 0:0x7c0e; some firmwares come by 0x7c0:0
        &[0xbe, at, at_high],            // 0e mov si, packet
        &[0xb4, 0x42],                   // 11 mov ah, 0x42: read
        &[0xcd, 0x13],                   // 13 int 0x13
        &[0xb3, WENT_WELL + 1],          // 15 mov bl, "not read"
        &[0x72, 0x2f],                   // 17 jc end
        &[0x52],                         // 19 push dx
        &[0xbf, buffer, buffer_high],    // 1a mov di, buffer
        &[0x8a, 0x1d],                   // 1d next: mov bl, [di]
        &[0x84, 0xdb],                   // 1f test bl, bl
        &[0x74, 0x11],                   // 21 jz printed
        &[0xba, 0xfd, 0x03],             // 23 mov dx, 0x3fd: line status of the serial port
        &[0xec],                         // 26 wait: in al, dx
        &[0xa8, 0x20],                   // 27 test al, 0x20: takes a byte
        &[0x74, 0xfb],                   // 29 jz wait
        &[0xba, 0xf8, 0x03],             // 2b mov dx, 0x3f8
        &[0x88, 0xd8],                   // 2e mov al, bl
        &[0xee],                         // 30 out dx, al
        &[0x47],                         // 31 inc di
        &[0xeb, 0xe9],                   // 32 jmp next
        &[0x5a],                         // 34 printed: pop dx
        &[0xc6, 0x06, block, block_high, COPY as u8], // 35 mov byte [packet + 8], COPY
        &[0xbe, at, at_high],            // 3a mov si, packet
        &[0xb8, 0x00, 0x43],             // 3d mov ax, 0x4300: write
        &[0xcd, 0x13],                   // 40 int 0x13
        &[0xb3, WENT_WELL + 2],          // 42 mov bl, "not written"
        &[0x72, 0x02],                   // 44 jc end
        &[0xb3, WENT_WELL],              // 46 mov bl, "went well"
        &[0x88, 0xd8],                   // 48 end: mov al, bl
        &[0xe6, 0xf4],                   // 4a out 0xf4, al: off
        &[0xf4],                         // 4c hlt
        &[0xeb, 0xfd],                   // 4d jmp 4c
        &[16, 0, 1, 0, buffer, buffer_high, 0, 0], // 4f packet: its length, one block, to or from 0:buffer,
        &TEXT.to_le_bytes(),                       // 57 of the disk's block
    ];
    let mut code = parts.concat();
    code.resize(510, 0);
    code.extend([0x55, 0xaa]);
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_code_is_one_block_with_its_sign_and_the_packet_where_the_code_looks() {
        let code = boot_code();
        assert_eq!(code.len(), 512);
        assert_eq!(code[510..], [0x55, 0xaa]);
        assert_eq!(code[0x4f..0x57], [16, 0, 1, 0, 0x00, 0x80, 0, 0]);
        assert_eq!(code[0x57..0x5f], TEXT.to_le_bytes());
    }

    #[test]
    fn a_boot_disk_has_the_text_where_it_is_read() {
        let disk = Guest::boot_disk("hello").unwrap();
        assert_eq!(disk[4096..4102], *b"hello\0");
        assert_eq!(disk.len() as u64, Guest::copy_at());
        assert!(Guest::boot_disk(&"x".repeat(512)).is_err());
    }
}
