//! Manifests in CSV and Parquet, and packed volumes, of the kinds that the client's fixtures lack.

use std::io::Write as _;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use parquet::data_type::{ByteArray, ByteArrayType, Int32Type, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;

use super::{Done, fixtures, keep};

/// Columns beside a manifest's own: a list of lists of groups with a map.
const NESTED: &str = "message manifest {
    required binary file (UTF8);
    required binary patient (UTF8);
    required binary label (UTF8);
    optional group outer (LIST) {
        repeated group list {
            optional group element (LIST) {
                repeated group list {
                    optional group element {
                        optional int32 number;
                        optional group notes (MAP) {
                            repeated group key_value {
                                required binary key (UTF8);
                                optional int64 value;
                            }
                        }
                    }
                }
            }
        }
    }
}";

type Group<'a> = SerializedRowGroupWriter<'a, Vec<u8>>;

fn texts(group: &mut Group<'_>, texts: &[&str], levels: Option<(&[i16], &[i16])>) -> Done {
    let values: Vec<ByteArray> = texts.iter().map(|text| ByteArray::from(*text)).collect();
    let mut column = group.next_column()?.ok_or("a column too many")?;
    let (definition, repetition) = levels.unzip();
    column.typed::<ByteArrayType>().write_batch(&values, definition, repetition)?;
    Ok(column.close()?)
}

/// Two rows; the nested columns of the first hold `filled`, those of the second nothing.
fn nested(filled: bool) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let schema = Arc::new(parse_message_type(NESTED)?);
    let properties = Arc::new(WriterProperties::default());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, properties)?;
    let mut group = writer.next_row_group()?;
    texts(&mut group, &["a.png", "0.png"], None)?;
    texts(&mut group, &["p", "q"], None)?;
    texts(&mut group, &["ill", "healthy"], None)?;
    let level = |deepest| if filled { [deepest, 0] } else { [0, 0] };
    let mut column = group.next_column()?.ok_or("a column too many")?;
    let numbers: &[i32] = if filled { &[7] } else { &[] };
    column.typed::<Int32Type>().write_batch(numbers, Some(&level(6)), Some(&[0, 0]))?;
    column.close()?;
    let keys: &[&str] = if filled { &["k"] } else { &[] };
    texts(&mut group, keys, Some((&level(7), &[0, 0])))?;
    let mut column = group.next_column()?.ok_or("a column too many")?;
    let values: &[i64] = if filled { &[9] } else { &[] };
    column.typed::<Int64Type>().write_batch(values, Some(&level(8)), Some(&[0, 0]))?;
    column.close()?;
    group.close()?;
    Ok(writer.into_inner()?)
}

fn gzip(bytes: &[u8], level: u32) -> std::io::Result<Vec<u8>> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::new(level));
    packed.write_all(bytes)?;
    packed.finish()
}

/// Writes all of them.
pub(super) fn write() -> Done {
    keep("parquet", "nested.parquet", &nested(true)?)?;
    keep("parquet", "nested-empty.parquet", &nested(false)?)?;
    keep("csv", "no-file.csv", b"picture,patient\na.png,p\n")?;
    keep("csv", "good.csv", b"file,patient,label\na.png,p,ill\n")?;
    let quotes: &[u8] = b"\xEF\xBB\xBF\"file\",\"patient\",\"label\"\r\n\
        \"a.png\",\"the \"\"first\"\"\",\"ill\"\r\n\
        \"0.png\",\"q, r\",healthy\r\n1.png,\"two\nlines\",\"ill\"";
    keep("csv", "quotes.csv", quotes)?;
    keep("csv", "open-quote.csv", b"file,patient,label\na.png,\"p,ill\n0.png,q,healthy\n")?;
    keep("csv", "semicolons.csv", b"file;patient;label\na.png;\"p;q\";ill\n")?;
    for (name, volume) in fixtures("nifti", &[".nii"])? {
        // Stored blocks, so that changed bytes are still a packed volume.
        keep("nifti", &format!("stored-{name}.gz"), &gzip(&volume, 0)?)?;
        let (one, two) = volume.split_at(volume.len() / 2);
        keep("nifti", &format!("members-{name}.gz"), &[gzip(one, 6)?, gzip(two, 6)?].concat())?;
    }
    keep("nifti", "cut.nii", &[0; 400])
}
