//! Small seeded mutations of bytes.

/// splitmix64.
pub(crate) struct Dice(pub u64);

impl Dice {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, or 0.
    pub fn below(&mut self, n: usize) -> usize {
        match u64::try_from(n) {
            Ok(n) if n > 0 => usize::try_from(self.next() % n).unwrap(),
            _ => 0,
        }
    }
}

/// Pieces that parsers stumble over.
const WORDS: &[&[u8]] = &[
    b"0",
    b"-1",
    b"4294967295",
    b"4294967296",
    b"18446744073709551615",
    b"9223372036854775808",
    b"1e308",
    b"null",
    b"true",
    b"{}",
    b"[]",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b",",
    b":",
    b"\\u0000",
    b"\\ud800",
    b" ",
    b"\n",
    b"\0",
    b"/../",
    b"..",
    b"%s",
    b"\xff\xfe",
    b"\xe2\x80\xae",
    b"twofish",
    b"cipher_null-ecb",
    b"crypt",
    b"sector_size:",
];

/// Makes one input from a corpus.
pub(crate) struct Mutator {
    dice: Dice,
}

impl Mutator {
    /// The same seed gives the same input.
    pub fn new(seed: u64) -> Self {
        Self { dice: Dice(seed) }
    }

    /// One of the corpus with one to eight changes.
    pub fn mutate(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = corpus[self.dice.below(corpus.len())].clone();
        for _ in 0..=self.dice.below(8) {
            self.change(&mut bytes, corpus);
        }
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let at = self.dice.below(bytes.len() + 1);
        let len = self.dice.below(32).min(bytes.len() - at);
        match self.dice.below(9) {
            0 => {
                if let Some(b) = bytes.get_mut(at) {
                    *b ^= 1 << self.dice.below(8);
                }
            }
            1 => {
                if let Some(b) = bytes.get_mut(at) {
                    *b = self.dice.next().to_le_bytes()[0];
                }
            }
            2 => drop(bytes.drain(at..at + len)),
            3 => {
                let piece = bytes[at..at + len].to_vec();
                let to = self.dice.below(bytes.len() + 1);
                bytes.splice(to..to, piece);
            }
            4 => {
                let word = WORDS[self.dice.below(WORDS.len())];
                bytes.splice(at..at, word.iter().copied());
            }
            5 => {
                let word = WORDS[self.dice.below(WORDS.len())];
                bytes.splice(at..at + len, word.iter().copied());
            }
            6 => self.number(bytes),
            7 => {
                let other = &corpus[self.dice.below(corpus.len())];
                let from = self.dice.below(other.len() + 1);
                let end = (from + self.dice.below(64)).min(other.len());
                bytes.splice(at..at, other[from..end].iter().copied());
            }
            _ => bytes.truncate(at),
        }
    }

    /// Another number in the place of a decimal one.
    fn number(&mut self, bytes: &mut Vec<u8>) {
        let start = self.dice.below(bytes.len() + 1);
        let Some(at) = bytes[start..]
            .iter()
            .position(u8::is_ascii_digit)
            .map(|p| p + start)
        else {
            return;
        };
        let end = bytes[at..]
            .iter()
            .position(|b| !b.is_ascii_digit())
            .map_or(bytes.len(), |p| p + at);
        let value = match self.dice.below(4) {
            0 => self.dice.next(),
            1 => 1 << self.dice.below(64),
            2 => (1 << self.dice.below(63)) - 1,
            _ => self.dice.next() % 1000,
        };
        bytes.splice(at..end, value.to_string().into_bytes());
    }
}
