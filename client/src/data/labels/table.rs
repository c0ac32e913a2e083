//! A manifest in Parquet, turned to the text that a CSV of it would hold.

use std::sync::Arc;

use bytes::Bytes;
use csv::ByteRecord;
use parquet::basic::{Compression, ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::record::reader::RowIter;
use parquet::schema::types::Type;

use super::pages;
use super::rows::MANIFEST_BYTES_MAX;
use crate::data::guard::caught;
use crate::data::isolate::{DecoderProblem, Isolation, Limits, Request};

/// A Parquet file's first and last four bytes.
pub(super) const MAGIC: &[u8] = b"PAR1";
/// Most rows of any manifest: as many as a walk over a folder takes files.
pub(super) const ROWS_MAX: u64 = 2_000_000;
/// Largest description of schema and row groups, bytes. Each of its bytes can claim a row group.
const FOOTER_BYTES_MAX: u64 = 4 << 20;
/// Most columns.
const COLUMNS_MAX: usize = 1000;
/// Most levels of columns within columns; tables that are read into a manifest have two.
const DEPTH_MAX: usize = 32;
/// Longest quotation of the reader.
const DETAIL_CHARS_MAX: usize = 160;

/// What is wrong with a Parquet manifest.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableProblem {
    /// No Parquet, or not all of it.
    #[error("not a whole Parquet file (PAR1 at both ends); save it again, or as CSV")]
    NotParquet,
    /// The file cannot be taken apart.
    #[error("damaged: {detail}; save it again")]
    Damaged {
        /// What the reader said.
        detail: String,
    },
    /// The process that tries the file's description first gave no answer.
    #[error("its description was not read: {0}")]
    Description(DecoderProblem),
    /// Too many of something.
    #[error("{found} {what}; a manifest has at most {max}")]
    TooMany {
        /// Rows, columns, bytes of its description.
        what: &'static str,
        /// How many.
        found: u64,
        /// The bound.
        max: u64,
    },
    /// More text than a CSV may have.
    #[error("its columns hold more than {max} bytes of text; name fewer files")]
    Text {
        /// The bound.
        max: u64,
    },
    /// A column of another kind.
    #[error("the column `{column}` holds {found}; save it as text, numbers or booleans")]
    Column {
        /// The column.
        column: String,
        /// What it holds.
        found: String,
    },
    /// A compression that is not read.
    #[error(
        "the column `{column}` is compressed with {codec}; save it with snappy, zstd, gzip or none"
    )]
    Codec {
        /// The column.
        column: String,
        /// Its name.
        codec: String,
    },
    /// An encoding that is not read.
    #[error("the column `{column}` has {}; save it with the writer's defaults", encoding_name(*.encoding))]
    Encoding {
        /// The column.
        column: String,
        /// Its number in parquet-format.
        encoding: i64,
    },
}

fn encoding_name(encoding: i64) -> String {
    match encoding {
        6 => "the encoding DELTA_LENGTH_BYTE_ARRAY".to_owned(),
        7 => "the encoding DELTA_BYTE_ARRAY".to_owned(),
        9 => "the encoding BYTE_STREAM_SPLIT".to_owned(),
        other => format!("the unknown encoding {other}"),
    }
}

impl From<ParquetError> for TableProblem {
    fn from(error: ParquetError) -> Self {
        Self::Damaged { detail: detail(&error) }
    }
}

fn detail(error: &ParquetError) -> String {
    // Some quote the bytes that they stumbled over.
    error.to_string().chars().take(DETAIL_CHARS_MAX).collect()
}

/// A Parquet manifest.
pub(super) struct Table {
    bytes: Bytes,
    reader: SerializedFileReader<Bytes>,
    rows: usize,
    /// The columns that were read, by their place in the schema.
    columns: Vec<(usize, Column)>,
}

/// The text of one column's rows, one after another.
#[derive(Default)]
struct Column {
    text: String,
    /// Where each row's text ends.
    ends: Vec<usize>,
}

/// The parquet crate asserts in places what a hostile file may break: a panic in it is one more kind of damage.
fn guarded<T>(read: impl FnOnce() -> Result<T, TableProblem>) -> Result<T, TableProblem> {
    caught(read).unwrap_or_else(|| {
        Err(TableProblem::Damaged { detail: "the reader gave up on it".to_owned() })
    })
}

/// Reads a file's description alone, and looks how deep its columns lie within each other.
///
/// # Errors
/// What is wrong with it, in words.
pub(in crate::data) fn check_footer(footer: &[u8]) -> Result<(), String> {
    let length = u32::try_from(footer.len()).map_err(|e| e.to_string())?.to_le_bytes();
    let alone = [MAGIC, footer, &length, MAGIC].concat();
    let reader = SerializedFileReader::new(Bytes::from(alone)).map_err(|error| detail(&error))?;
    let mut level = vec![reader.metadata().file_metadata().schema()];
    for _ in 0..=DEPTH_MAX {
        let groups = level.iter().filter(|of| of.is_group());
        level = groups.flat_map(|of| of.get_fields()).map(|field| &**field).collect();
    }
    match level.is_empty() {
        true => Ok(()),
        false => Err(format!("columns lie more than {DEPTH_MAX} levels within each other")),
    }
}

impl Table {
    /// Reads the schema, and no row.
    pub(super) fn open(bytes: Vec<u8>) -> Result<Self, TableProblem> {
        // Magic, the footer with its length, magic.
        let tail = bytes.len().checked_sub(8).filter(|tail| *tail >= MAGIC.len());
        let (length, magic) = match tail {
            Some(tail) => bytes[tail..].split_at(4),
            None => return Err(TableProblem::NotParquet),
        };
        if !bytes.starts_with(MAGIC) || magic != MAGIC {
            return Err(TableProblem::NotParquet);
        }
        let footer = length.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
        at_most("bytes of description", footer, FOOTER_BYTES_MAX)?;
        // The reader calls itself for each level of nested columns, and a stack that is used up ends the process: so
        // another one reads the description first.
        let tail = bytes.len() - 8;
        let footer = usize::try_from(footer).ok().and_then(|footer| tail.checked_sub(footer));
        let footer = footer.map(|at| Request::Footer(&bytes[at..tail]));
        let tried =
            Isolation::default().ask(&footer.ok_or(TableProblem::NotParquet)?, Limits::default());
        let tried = tried.map_err(TableProblem::Description)?;
        tried.map_err(|detail| TableProblem::Damaged { detail })?;
        let bytes = Bytes::from(bytes);
        guarded(|| {
            let reader = SerializedFileReader::new(bytes.clone())?;
            let columns = reader.metadata().file_metadata().schema().get_fields().len();
            at_most("columns", columns as u64, COLUMNS_MAX as u64)?;
            let mut rows = 0u64;
            for group in reader.metadata().row_groups() {
                let more = u64::try_from(group.num_rows());
                let more = more.map_err(|_| damaged("a row group has fewer than no rows"))?;
                rows = rows.saturating_add(more);
            }
            at_most("rows", rows, ROWS_MAX)?;
            Ok(Self { bytes, reader, rows: rows as usize, columns: Vec::new() })
        })
    }

    fn fields(&self) -> &[Arc<Type>] {
        self.reader.metadata().file_metadata().schema().get_fields()
    }

    /// The names of all columns.
    pub(super) fn names(&self) -> ByteRecord {
        self.fields().iter().map(|field| field.name()).collect()
    }

    /// Reads the columns at these places of the schema.
    pub(super) fn read(&mut self, wanted: &[usize]) -> Result<(), TableProblem> {
        let columns = guarded(|| {
            for index in wanted {
                self.check(&self.fields()[*index])?;
            }
            self.decode(wanted)
        })?;
        self.columns = columns;
        Ok(())
    }

    /// Refuses a column that is no text, or that a few bytes could blow up.
    fn check(&self, field: &Type) -> Result<(), TableProblem> {
        let column = field.name();
        if let Some(found) = other_than_text(field) {
            return Err(TableProblem::Column { column: column.to_owned(), found });
        }
        let metadata = self.reader.metadata();
        let leaves = metadata.file_metadata().schema_descr().columns();
        let leaf = leaves.iter().position(|leaf| leaf.path().parts() == [column]);
        let leaf = leaf.ok_or_else(|| damaged(&format!("no values of the column `{column}`")))?;
        let mut unpacked = 0;
        for group in metadata.row_groups() {
            let chunk = group.column(leaf);
            let compression = chunk.compression();
            match compression {
                Compression::UNCOMPRESSED
                | Compression::SNAPPY
                | Compression::GZIP(_)
                | Compression::ZSTD(_) => {}
                Compression::LZO
                | Compression::BROTLI(_)
                | Compression::LZ4
                | Compression::LZ4_RAW => {
                    // Without its level.
                    let codec = compression.to_string();
                    let codec = codec.split('(').next().unwrap_or_default().to_owned();
                    return Err(TableProblem::Codec { column: column.to_owned(), codec });
                }
            }
            let (start, length) = chunk.byte_range();
            let range = start as usize..start.saturating_add(length) as usize;
            let bytes = self.bytes.get(range);
            let bytes = bytes.ok_or_else(|| damaged("a column lies outside of the file"))?;
            unpacked += pages::check(column, bytes, compression)?;
            if unpacked > MANIFEST_BYTES_MAX {
                return Err(TableProblem::Text { max: MANIFEST_BYTES_MAX });
            }
        }
        Ok(())
    }

    fn decode(&self, wanted: &[usize]) -> Result<Vec<(usize, Column)>, TableProblem> {
        let schema = self.reader.metadata().file_metadata().schema();
        let fields = wanted.iter().map(|index| Arc::clone(&self.fields()[*index])).collect();
        let projection = Type::group_type_builder(schema.name()).with_fields(fields).build()?;
        let mut columns: Vec<_> = wanted.iter().map(|at| (*at, Column::default())).collect();
        let (mut rows, mut text) = (0, 0);
        for row in RowIter::from_file(Some(projection), &self.reader)? {
            rows += 1;
            let fields = row?.into_columns();
            if fields.len() != columns.len() || rows > self.rows {
                return Err(damaged("its rows are not those it announces"));
            }
            for ((_, column), (_, field)) in columns.iter_mut().zip(fields) {
                text += column.push(&field);
            }
            if text as u64 > MANIFEST_BYTES_MAX {
                return Err(TableProblem::Text { max: MANIFEST_BYTES_MAX });
            }
        }
        if rows != self.rows {
            return Err(damaged("its rows are not those it announces"));
        }
        Ok(columns)
    }

    /// Every row, its fields up to the last column that was read.
    pub(super) fn records(&self) -> impl Iterator<Item = ByteRecord> + '_ {
        let width = self.columns.iter().map(|(at, _)| at + 1).max().unwrap_or(0);
        (0..self.rows).map(move |row| {
            let mut fields = vec![""; width];
            for (at, column) in &self.columns {
                fields[*at] = column.row(row);
            }
            fields.into_iter().collect()
        })
    }
}

impl Column {
    /// Appends what a CSV would show of `field`, without the spaces around it; gives its length.
    fn push(&mut self, field: &Field) -> usize {
        let before = self.text.len();
        self.text.push_str(shown(field).trim());
        self.ends.push(self.text.len());
        self.text.len() - before
    }

    fn row(&self, row: usize) -> &str {
        let start = row.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.text[start..self.ends[row]]
    }
}

/// A value as pandas writes it to CSV: nothing of what is missing, and 1.0 for a whole number among
/// reals. Booleans are written as pyarrow does, `true` and `false`.
fn shown(field: &Field) -> String {
    match field {
        Field::Bool(value) => value.to_string(),
        Field::Byte(value) => value.to_string(),
        Field::Short(value) => value.to_string(),
        Field::Int(value) => value.to_string(),
        Field::Long(value) => value.to_string(),
        Field::UByte(value) => value.to_string(),
        Field::UShort(value) => value.to_string(),
        Field::UInt(value) => value.to_string(),
        Field::ULong(value) => value.to_string(),
        Field::Float(value) if !value.is_nan() => format!("{value:?}"),
        Field::Double(value) if !value.is_nan() => format!("{value:?}"),
        Field::Str(text) => text.clone(),
        Field::Null | Field::Float(_) | Field::Double(_) => String::new(),
        // `other_than_text` lets no column of these kinds through.
        Field::Float16(_)
        | Field::Decimal(_)
        | Field::Bytes(_)
        | Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_)
        | Field::Group(_)
        | Field::ListInternal(_)
        | Field::MapInternal(_) => String::new(),
    }
}

/// What a column holds that is neither text nor a number nor a boolean.
fn other_than_text(field: &Type) -> Option<String> {
    if !field.is_primitive() || field.get_basic_info().repetition() == Repetition::REPEATED {
        return Some("lists or records".to_owned());
    }
    let info = field.get_basic_info();
    let physical = field.get_physical_type();
    let plain = match physical {
        Physical::BOOLEAN | Physical::FLOAT | Physical::DOUBLE => true,
        Physical::INT32 | Physical::INT64 => {
            let whole = matches!(
                info.converted_type(),
                ConvertedType::NONE
                    | ConvertedType::INT_8
                    | ConvertedType::INT_16
                    | ConvertedType::INT_32
                    | ConvertedType::INT_64
                    | ConvertedType::UINT_8
                    | ConvertedType::UINT_16
                    | ConvertedType::UINT_32
                    | ConvertedType::UINT_64
            );
            let logical = info.logical_type_ref();
            whole
                && logical.is_none_or(|logical| {
                    matches!(logical, LogicalType::Integer { .. } | LogicalType::Unknown)
                })
        }
        Physical::BYTE_ARRAY => matches!(
            info.converted_type(),
            ConvertedType::UTF8 | ConvertedType::ENUM | ConvertedType::JSON
        ),
        Physical::INT96 | Physical::FIXED_LEN_BYTE_ARRAY => false,
    };
    let named = || match (info.logical_type_ref(), info.converted_type()) {
        (Some(LogicalType::Date), _) | (_, ConvertedType::DATE) => "dates",
        (Some(LogicalType::Timestamp { .. }), _) => "points in time",
        (Some(LogicalType::Time { .. }), _) => "times of the day",
        (_, ConvertedType::DECIMAL) => "decimals",
        _ if physical == Physical::INT96 => "points in time",
        _ if matches!(physical, Physical::INT32 | Physical::INT64) => "values of another kind",
        _ => "bytes that are not marked as text",
    };
    (!plain).then(|| named().to_owned())
}

fn damaged(detail: &str) -> TableProblem {
    TableProblem::Damaged { detail: detail.to_owned() }
}

fn at_most(what: &'static str, found: u64, max: u64) -> Result<(), TableProblem> {
    if found > max { Err(TableProblem::TooMany { what, found, max }) } else { Ok(()) }
}
