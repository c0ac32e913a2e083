//! Where a manifest's rows come from: CSV or Parquet. Behind it, both are text in named columns.

use std::fs::File;
use std::io::{ErrorKind, Read, Take};
use std::path::Path;

use csv::ByteRecord;

use super::table::{self, ROWS_MAX, Table, TableProblem};
use crate::data::folder::unreadable;
use crate::data::{At, DataError, ManifestProblem, RowProblem};

/// Largest manifest read, bytes; as much text a Parquet file may hold when it is unpacked.
pub(super) const MANIFEST_BYTES_MAX: u64 = 256 << 20;

/// Why one row cannot be read, and where it is.
pub(super) type RowTrouble = (At, RowProblem);

/// An opened manifest's rows.
pub(super) enum Rows {
    Csv(Box<csv::Reader<Take<File>>>),
    Table(Table),
}

impl Rows {
    /// What the file is, its first bytes tell; one that bears Parquet's ending must be Parquet.
    pub(super) fn open(path: &Path) -> Result<Self, DataError> {
        let refused = |problem| DataError::Manifest { path: path.display().to_string(), problem };
        let mut file = File::open(path).map_err(|error| {
            if error.kind() == ErrorKind::NotFound {
                return DataError::NoManifest { path: path.display().to_string() };
            }
            unreadable(path)(error)
        })?;
        let bytes = file.metadata().map_err(unreadable(path))?.len();
        if bytes > MANIFEST_BYTES_MAX {
            return Err(refused(ManifestProblem::TooLarge { bytes, max: MANIFEST_BYTES_MAX }));
        }
        let mut head = Vec::new();
        file.by_ref().take(4).read_to_end(&mut head).map_err(unreadable(path))?;
        let named = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("parquet"));
        if named || head == table::MAGIC {
            file.take(MANIFEST_BYTES_MAX).read_to_end(&mut head).map_err(unreadable(path))?;
            let table = Table::open(head);
            return table.map(Self::Table).map_err(|problem| refused(problem.into()));
        }
        // The csv crate drops the byte order mark that spreadsheets write.
        let file = File::open(path).map_err(unreadable(path))?.take(MANIFEST_BYTES_MAX);
        let reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(file);
        Ok(Self::Csv(Box::new(reader)))
    }

    /// The names of the columns.
    pub(super) fn header(&mut self) -> Result<ByteRecord, RowTrouble> {
        match self {
            Self::Csv(reader) => {
                let header = reader.byte_headers();
                header.cloned().map_err(|error| csv_trouble(&error, At::Line(1)))
            }
            Self::Table(table) => Ok(table.names()),
        }
    }

    /// Which columns the rows are asked for; other fields of a row may be empty.
    pub(super) fn select(&mut self, columns: &[usize]) -> Result<(), TableProblem> {
        match self {
            Self::Csv(_) => Ok(()),
            Self::Table(table) => table.read(columns),
        }
    }

    /// Each row for itself, with its place.
    pub(super) fn records(
        &mut self,
    ) -> Box<dyn Iterator<Item = Result<(At, ByteRecord), RowTrouble>> + '_> {
        match self {
            Self::Csv(reader) => {
                // One more than allowed, which is the error.
                let records = reader.byte_records().take(ROWS_MAX as usize + 1).zip(2..);
                Box::new(records.enumerate().map(|(row, (record, line))| match record {
                    _ if row as u64 == ROWS_MAX => {
                        let detail = format!("more than {ROWS_MAX} rows; name fewer files");
                        Err((At::Line(line), RowProblem::Csv { detail }))
                    }
                    Ok(record) => {
                        let line = record.position().map_or(line, csv::Position::line);
                        Ok((At::Line(line), record))
                    }
                    Err(error) => Err(csv_trouble(&error, At::Line(line))),
                }))
            }
            Self::Table(table) => {
                Box::new(table.records().zip(1..).map(|(record, row)| Ok((At::Row(row), record))))
            }
        }
    }
}

fn csv_trouble(error: &csv::Error, fallback: At) -> RowTrouble {
    let at = error.position().map_or(fallback, |position| At::Line(position.line()));
    let problem = if let csv::ErrorKind::UnequalLengths { expected_len, len, .. } = error.kind() {
        RowProblem::Fields { expected: *expected_len, found: *len }
    } else {
        RowProblem::Csv { detail: error.to_string() }
    };
    (at, problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A12f. Failed before: 64 million short rows of 256 MiB took more than 10 GB.
    #[test]
    fn a_csv_has_no_more_rows_than_any_manifest() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let most = ROWS_MAX as usize;
        std::fs::write(file.path(), "a\n".repeat(1 + most + 5)).unwrap();
        let mut rows = Rows::open(file.path()).unwrap();
        rows.header().unwrap();
        let (mut read, mut refused) = (0, Vec::new());
        for record in rows.records() {
            match record {
                Ok(_) => read += 1,
                Err((_, problem)) => refused.push(problem.to_string()),
            }
        }
        assert_eq!((read, refused.len()), (most, 1), "{refused:?}");
        assert!(refused[0].contains("more than 2000000 rows"), "{refused:?}");
    }
}
