//! Python's pickle (PEP 307, PEP 3154) read as data.
//!
//! A pickle is a program for a stack machine that may call any Python function. Here nothing is
//! ever called: the few names that a state dict needs stand for data, a few more that training
//! scripts save beside it (`argparse.Namespace`, numpy's scalars) are kept as things without
//! content, and any other name ends the reading with that name as the reason.

use std::collections::HashMap;

/// Longest pickle read, bytes; a state dict's holds names and shapes alone.
pub(super) const PICKLE_BYTES_MAX: u64 = 64 << 20;

/// Place of a [`Node`]; nodes refer to each other by it, as a pickle's memo may.
pub(super) type Id = usize;

/// A value of the pickle.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    /// `None`, numbers with a fraction, bytes, or something that only the file's author needs.
    Opaque,
    /// A number or a truth value.
    Int(i64),
    Text(String),
    /// A tuple, list or set.
    Sequence(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Name(Name),
    /// A tensor's numbers, in an entry of the archive.
    Storage(Storage),
    Tensor(TensorView),
}

/// The numbers of one or more tensors.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Storage {
    pub(super) kind: &'static str,
    /// The entry's name below `data/`.
    pub(super) key: String,
    pub(super) elements: u64,
}

/// Where a tensor lies in its storage, in elements.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TensorView {
    pub(super) storage: Storage,
    pub(super) offset: u64,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// What a known name stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Name {
    OrderedDict,
    /// Calling it with a tuple gives the tuple.
    Size,
    RebuildTensor,
    RebuildParameter,
    Storage(&'static str),
    /// Whatever it makes is not looked at.
    Opaque,
}

impl Node {
    /// Bytes of memory.
    fn cost(&self) -> usize {
        let inside = match self {
            Self::Opaque | Self::Int(_) | Self::Name(_) => 0,
            Self::Text(text) => text.len(),
            Self::Sequence(items) => size_of::<Id>() * items.len(),
            Self::Dict(pairs) => 2 * size_of::<Id>() * pairs.len(),
            Self::Storage(storage) => storage.key.len(),
            Self::Tensor(view) => {
                view.storage.key.len() + size_of::<usize>() * 2 * view.shape.len()
            }
        };
        size_of::<Self>() + inside
    }
}

/// Most memory that a pickle may build, bytes. Those of published checkpoints build a few mebibytes.
const MEMORY_BYTES_MAX: usize = 256 << 20;

/// Why a pickle is refused.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum PickleError {
    #[error("names the Python object `{0}`, which no weights need; nothing was run")]
    Name(String),
    #[error("the pickle ends at byte {0}, in the middle")]
    Truncated(usize),
    #[error("pickle instruction {code:#04x} at byte {at} is none that weights need")]
    Instruction { code: u8, at: usize },
    #[error("the pickle builds more than {} MiB of objects, which no weights need", MEMORY_BYTES_MAX >> 20)]
    Memory,
    #[error("the pickle makes no sense at byte {at}: {what}")]
    Nonsense { at: usize, what: &'static str },
}

/// Everything the pickle built.
#[derive(Debug)]
pub(super) struct Pickle {
    nodes: Vec<Node>,
    root: Id,
}

impl Pickle {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, PickleError> {
        let mut machine = Machine {
            bytes,
            at: 0,
            nodes: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            spent: 0,
        };
        loop {
            let code = machine.take(1)?[0];
            if code == b'.' {
                let root = machine.pop()?;
                return Ok(Self { nodes: machine.nodes, root });
            }
            machine.step(code)?;
        }
    }

    pub(super) fn root(&self) -> Id {
        self.root
    }

    pub(super) fn node(&self, id: Id) -> &Node {
        &self.nodes[id]
    }
}

fn known(module: &str, name: &str) -> Option<Name> {
    let storages = [
        ("FloatStorage", "f32"),
        ("HalfStorage", "f16"),
        ("BFloat16Storage", "bf16"),
        ("DoubleStorage", "f64"),
        ("LongStorage", "i64"),
        ("IntStorage", "i32"),
        ("ShortStorage", "i16"),
        ("CharStorage", "i8"),
        ("ByteStorage", "u8"),
        ("BoolStorage", "bool"),
    ];
    let storage = storages.iter().find(|(known, _)| *known == name);
    match (module, name) {
        ("collections", "OrderedDict") => Some(Name::OrderedDict),
        ("torch", "Size") => Some(Name::Size),
        ("torch._utils", "_rebuild_tensor_v2") => Some(Name::RebuildTensor),
        ("torch._utils", "_rebuild_parameter") => Some(Name::RebuildParameter),
        ("torch", _) if storage.is_some() => storage.map(|(_, kind)| Name::Storage(kind)),
        (
            "torch",
            "device" | "float16" | "bfloat16" | "float32" | "float64" | "int8" | "int16" | "int32"
            | "int64" | "uint8" | "bool",
        )
        | ("argparse", "Namespace")
        | ("collections", "defaultdict" | "Counter")
        | ("pathlib" | "pathlib._local", "Path" | "PosixPath" | "PurePosixPath" | "WindowsPath")
        | ("numpy", "dtype" | "ndarray")
        | ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar" | "_reconstruct")
        | ("_codecs", "encode")
        | (
            "__builtin__" | "builtins",
            "set" | "frozenset" | "dict" | "list" | "int" | "float" | "bool" | "str" | "bytes"
            | "complex" | "slice" | "range" | "xrange" | "bytearray",
        ) => Some(Name::Opaque),
        _ => None,
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Bytes of memory that everything so far has taken.
    spent: usize,
}

impl Machine<'_> {
    fn step(&mut self, code: u8) -> Result<(), PickleError> {
        match code {
            // PROTO and FRAME say nothing that reading needs.
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'(' => {
                self.charge(size_of::<usize>())?;
                self.marks.push(self.stack.len());
            }
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'N' => self.push(Node::Opaque)?,
            b'G' => self.opaque(8)?,
            0x88 | 0x89 => self.push(Node::Int(i64::from(code == 0x88)))?,
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Node::Int(i64::from(value)))?;
            }
            b'K' => {
                let [value] = self.array()?;
                self.push(Node::Int(i64::from(value)))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.push(Node::Int(i64::from(value)))?;
            }
            0x8a => self.long()?,
            b'X' | b'T' | b'B' | b'U' | b'C' | 0x8c | 0x8d | 0x8e => self.text(code)?,
            b'}' => self.push(Node::Dict(Vec::new()))?,
            b']' | b')' | 0x8f => self.push(Node::Sequence(Vec::new()))?,
            b't' | b'l' | 0x91 => {
                let items = self.pop_mark()?;
                self.push(Node::Sequence(items))?;
            }
            0x85..=0x87 => {
                let items = self.pop_many(usize::from(code - 0x84))?;
                self.push(Node::Sequence(items))?;
            }
            b'a' => {
                let items = self.pop_many(1)?;
                self.extend(items)?;
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.extend(items)?;
            }
            b's' => {
                let items = self.pop_many(2)?;
                self.insert(&items)?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.insert(&items)?;
            }
            b'q' | b'r' | 0x94 => self.memoize(code)?,
            b'h' | b'j' => self.recall(code)?,
            b'c' | 0x93 => self.name(code)?,
            b'R' | 0x81 => self.call()?,
            b'b' => self.build()?,
            b'Q' => self.persistent()?,
            _ => return Err(PickleError::Instruction { code, at: self.at - 1 }),
        }
        Ok(())
    }

    fn nonsense<T>(&self, what: &'static str) -> Result<T, PickleError> {
        Err(PickleError::Nonsense { at: self.at, what })
    }

    fn take(&mut self, length: usize) -> Result<&[u8], PickleError> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(PickleError::Truncated(self.bytes.len()))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn push(&mut self, node: Node) -> Result<(), PickleError> {
        self.charge(node.cost() + size_of::<Id>())?;
        self.nodes.push(node);
        self.stack.push(self.nodes.len() - 1);
        Ok(())
    }

    /// Counts memory before it is used; it is given back at the end alone.
    fn charge(&mut self, bytes: usize) -> Result<(), PickleError> {
        self.spent = self.spent.saturating_add(bytes);
        if self.spent > MEMORY_BYTES_MAX { Err(PickleError::Memory) } else { Ok(()) }
    }

    fn opaque(&mut self, length: usize) -> Result<(), PickleError> {
        self.take(length)?;
        self.push(Node::Opaque)?;
        Ok(())
    }

    /// The topmost value above the last mark.
    fn pop(&mut self) -> Result<Id, PickleError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return self.nonsense("nothing is on the stack");
        }
        self.stack.pop().map_or_else(|| self.nonsense("nothing is on the stack"), Ok)
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Id>, PickleError> {
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(self.pop()?);
        }
        items.reverse();
        Ok(items)
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, PickleError> {
        match self.marks.pop() {
            Some(height) => Ok(self.stack.split_off(height)),
            None => self.nonsense("no mark is on the stack"),
        }
    }

    fn top(&self) -> Result<Id, PickleError> {
        self.stack.last().copied().map_or_else(|| self.nonsense("nothing is on the stack"), Ok)
    }

    /// Up to eight bytes, little-endian two's complement; longer ones are nobody's shape.
    fn long(&mut self) -> Result<(), PickleError> {
        let [length] = self.array()?;
        let bytes = self.take(usize::from(length))?;
        let node = if bytes.len() > 8 {
            Node::Opaque
        } else {
            let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
            let mut wide = [if negative { 0xff } else { 0 }; 8];
            wide[..bytes.len()].copy_from_slice(bytes);
            Node::Int(i64::from_le_bytes(wide))
        };
        self.push(node)?;
        Ok(())
    }

    fn text(&mut self, code: u8) -> Result<(), PickleError> {
        let length = match code {
            b'U' | b'C' | 0x8c => u64::from(self.array::<1>()?[0]),
            0x8d | 0x8e => u64::from_le_bytes(self.array()?),
            _ => u64::from(u32::from_le_bytes(self.array()?)),
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let bytes = self.take(length)?;
        let node = match std::str::from_utf8(bytes) {
            Ok(text) if matches!(code, b'X' | 0x8c | 0x8d | b'T' | b'U') => {
                Node::Text(text.to_owned())
            }
            Ok(_) | Err(_) => Node::Opaque,
        };
        self.push(node)?;
        Ok(())
    }

    fn extend(&mut self, items: Vec<Id>) -> Result<(), PickleError> {
        let list = self.top()?;
        self.charge(2 * size_of::<Id>() * items.len())?;
        if let Node::Sequence(known) = &mut self.nodes[list] {
            known.extend(items);
        } else if self.nodes[list] != Node::Opaque {
            return self.nonsense("only a list can be appended to");
        }
        Ok(())
    }

    fn insert(&mut self, items: &[Id]) -> Result<(), PickleError> {
        let dict = self.top()?;
        self.charge(2 * size_of::<Id>() * items.len())?;
        let (pairs, []) = items.as_chunks::<2>() else {
            return self.nonsense("a key without a value");
        };
        if let Node::Dict(known) = &mut self.nodes[dict] {
            known.extend(pairs.iter().map(|[key, value]| (*key, *value)));
        } else if self.nodes[dict] != Node::Opaque {
            return self.nonsense("only a dict has keys");
        }
        Ok(())
    }

    fn memoize(&mut self, code: u8) -> Result<(), PickleError> {
        let slot = match code {
            b'q' => u32::from(self.array::<1>()?[0]),
            b'r' => u32::from_le_bytes(self.array()?),
            _ => u32::try_from(self.memo.len()).unwrap_or(u32::MAX),
        };
        let top = self.top()?;
        self.charge(4 * size_of::<(u32, Id)>())?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn recall(&mut self, code: u8) -> Result<(), PickleError> {
        let slot = match code {
            b'h' => u32::from(self.array::<1>()?[0]),
            _ => u32::from_le_bytes(self.array()?),
        };
        self.charge(size_of::<Id>())?;
        match self.memo.get(&slot) {
            Some(id) => self.stack.push(*id),
            None => return self.nonsense("nothing was remembered there"),
        }
        Ok(())
    }

    fn name(&mut self, code: u8) -> Result<(), PickleError> {
        let (module, name) = if code == b'c' {
            (self.line()?, self.line()?)
        } else {
            let pair = self.pop_many(2)?;
            let (Node::Text(module), Node::Text(name)) =
                (&self.nodes[pair[0]], &self.nodes[pair[1]])
            else {
                return self.nonsense("a name that is not text");
            };
            (module.clone(), name.clone())
        };
        let meaning = known(&module, &name).ok_or_else(|| {
            let shown: String = format!("{module}.{name}").chars().take(200).collect();
            PickleError::Name(shown.escape_default().to_string())
        })?;
        self.push(Node::Name(meaning))?;
        Ok(())
    }

    fn line(&mut self) -> Result<String, PickleError> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|b| *b == b'\n');
        let length = length.ok_or(PickleError::Truncated(self.bytes.len()))?;
        let line = String::from_utf8_lossy(&rest[..length]).into_owned();
        self.at += length + 1;
        Ok(line)
    }

    /// What calling a known name with these arguments would give, made without calling.
    fn call(&mut self) -> Result<(), PickleError> {
        let called = self.pop_many(2)?;
        let Node::Sequence(arguments) = self.nodes[called[1]].clone() else {
            return self.nonsense("arguments that are not a tuple");
        };
        let called = match &self.nodes[called[0]] {
            Node::Name(name) => *name,
            Node::Opaque => Name::Opaque,
            Node::Int(_)
            | Node::Text(_)
            | Node::Sequence(_)
            | Node::Dict(_)
            | Node::Storage(_)
            | Node::Tensor(_) => return self.nonsense("a call of something that is no name"),
        };
        let node = match (called, &arguments[..]) {
            (Name::OrderedDict, []) => Node::Dict(Vec::new()),
            (Name::Size, [only]) | (Name::RebuildParameter, [only, ..]) => {
                self.nodes[*only].clone()
            }
            (Name::RebuildTensor, arguments) => self.tensor(arguments)?,
            (Name::Opaque, _) => Node::Opaque,
            (Name::OrderedDict | Name::Size | Name::RebuildParameter | Name::Storage(_), _) => {
                return self.nonsense("a call that weights do not need");
            }
        };
        self.push(node)?;
        Ok(())
    }

    /// Attributes: those of an ordered dict (its version notes) or of something opaque.
    fn build(&mut self) -> Result<(), PickleError> {
        let pair = self.pop_many(2)?;
        if !matches!(self.nodes[pair[0]], Node::Dict(_) | Node::Opaque) {
            return self.nonsense("attributes where weights have none");
        }
        self.stack.push(pair[0]);
        Ok(())
    }

    /// `("storage", type, key, device, elements)`.
    fn persistent(&mut self) -> Result<(), PickleError> {
        let id = self.pop()?;
        let Node::Sequence(parts) = &self.nodes[id] else {
            return self.nonsense("a storage that is not a tuple");
        };
        let part = |at: usize| parts.get(at).map(|id| &self.nodes[*id]);
        let (
            Some(Node::Text(tag)),
            Some(Node::Name(Name::Storage(kind))),
            Some(Node::Text(key)),
            Some(Node::Int(elements)),
        ) = (part(0), part(1), part(2), part(4))
        else {
            return self.nonsense("a storage without type, key or size");
        };
        let (true, Ok(elements)) = (tag == "storage", u64::try_from(*elements)) else {
            return self.nonsense("a storage without type, key or size");
        };
        let storage = Storage { kind, key: key.clone(), elements };
        self.push(Node::Storage(storage))?;
        Ok(())
    }

    /// `(storage, offset, shape, strides, ..)`, which must lie within the storage.
    fn tensor(&self, arguments: &[Id]) -> Result<Node, PickleError> {
        let part = |at: usize| arguments.get(at).map(|id| &self.nodes[*id]);
        let (Some(Node::Storage(storage)), Some(Node::Int(offset))) = (part(0), part(1)) else {
            return self.nonsense("a tensor without storage or offset");
        };
        let extents = |at: usize| -> Option<Vec<usize>> {
            let Some(Node::Sequence(items)) = part(at) else { return None };
            let extent = |id: &Id| {
                let Node::Int(value) = &self.nodes[*id] else { return None };
                usize::try_from(*value).ok()
            };
            items.iter().map(extent).collect()
        };
        let (Some(shape), Some(strides), Ok(offset)) =
            (extents(2), extents(3), u64::try_from(*offset))
        else {
            return self.nonsense("a tensor without shape or strides");
        };
        let view = TensorView { storage: storage.clone(), offset, shape, strides };
        if view.shape.len() != view.strides.len() || view.shape.len() > 8 {
            return self.nonsense("a tensor whose shape and strides differ in length");
        }
        match view.span().and_then(|span| span.checked_add(offset)) {
            Some(end) if end <= view.storage.elements => Ok(Node::Tensor(view)),
            _ => self.nonsense("a tensor that reaches beyond its storage"),
        }
    }
}

impl TensorView {
    /// Elements of the storage from the first to the last that the tensor has.
    fn span(&self) -> Option<u64> {
        let mut elements = 1u64;
        let mut last = 0u64;
        for (extent, stride) in self.shape.iter().zip(&self.strides) {
            let (extent, stride) = (*extent as u64, *stride as u64);
            elements = elements.checked_mul(extent)?;
            last = last.checked_add(extent.saturating_sub(1).checked_mul(stride)?)?;
        }
        // A tensor of stride 0 has more elements than its storage; weights have none such.
        match elements {
            0 => Some(0),
            _ if elements > self.storage.elements => None,
            _ => last.checked_add(1),
        }
    }
}

#[cfg(test)]
mod tests;
