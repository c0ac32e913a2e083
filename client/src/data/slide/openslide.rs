//! OpenSlide (Goode et al. 2013, J. Pathol. Inform. 4:27), loaded when a slide needs it: the scanners'
//! own formats and JPEG 2000. The only module with code that the compiler cannot check; outside of it
//! a [`Reader`] is as safe as the library, which is C and so may crash on a hostile file. That is why the client has it in
//! another process (`isolated.rs`).
#![expect(unsafe_code, reason = "a C library is called; each call says why it may be")]

use std::ffi::{CStr, CString, c_char, c_double, c_int};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use libloading::Library;
use tributary_shared::text::printable;

use super::SlideProblem;
use crate::data::isolate::{Description, LEVELS_MAX, Region};

/// What the library is called, newest first.
#[cfg(target_os = "linux")]
const NAMES: [&str; 2] = ["libopenslide.so.1", "libopenslide.so.0"];
#[cfg(target_os = "macos")]
const NAMES: [&str; 4] = [
    "libopenslide.1.dylib",
    "libopenslide.0.dylib",
    "/opt/homebrew/lib/libopenslide.1.dylib",
    "/usr/local/lib/libopenslide.1.dylib",
];
#[cfg(target_os = "windows")]
const NAMES: [&str; 2] = ["libopenslide-1.dll", "libopenslide-0.dll"];
#[cfg(not(any(target_os = "linux", target_os = "macos", target_os = "windows")))]
const NAMES: [&str; 2] = ["libopenslide.so.1", "libopenslide.so.0"];

/// The oldest version whose functions are known here.
const VERSION_MIN: [u32; 2] = [3, 4];
/// Most pixels a side read at once.
pub(super) const SQUARE: u32 = 1024;
/// Longest text taken over from the library.
const TEXT_CHARS_MAX: usize = 200;

/// `openslide_t`.
#[repr(C)]
struct Handle {
    _opaque: [u8; 0],
}

/// The functions of `openslide.h` that are used. They are `Copy` and live as long as the process, since
/// the library is never unloaded.
pub(super) struct Functions {
    open: unsafe extern "C" fn(*const c_char) -> *mut Handle,
    close: unsafe extern "C" fn(*mut Handle),
    get_error: unsafe extern "C" fn(*mut Handle) -> *const c_char,
    get_level_count: unsafe extern "C" fn(*mut Handle) -> i32,
    get_level_dimensions: unsafe extern "C" fn(*mut Handle, i32, *mut i64, *mut i64),
    get_level_downsample: unsafe extern "C" fn(*mut Handle, i32) -> c_double,
    get_property_value: unsafe extern "C" fn(*mut Handle, *const c_char) -> *const c_char,
    read_region: unsafe extern "C" fn(*mut Handle, *mut u32, i64, i64, i32, i64, i64),
}

/// Libraries found so far, by the path that was asked for. A failure is looked for again: somebody
/// may have installed it meanwhile.
static LOADED: Mutex<Vec<(Option<PathBuf>, Arc<Functions>)>> = Mutex::new(Vec::new());

/// Loads the library at a path, or the one that the system finds, where that has not been done.
pub(super) fn library(asked: Option<&Path>) -> Result<Arc<Functions>, SlideProblem> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, functions)) = loaded.iter().find(|(path, _)| path.as_deref() == asked) {
        return Ok(Arc::clone(functions));
    }
    let functions = Arc::new(Functions::load(asked)?);
    loaded.push((asked.map(Path::to_owned), Arc::clone(&functions)));
    Ok(functions)
}

impl Functions {
    fn load(asked: Option<&Path>) -> Result<Self, SlideProblem> {
        let open = |name: &Path| {
            // SAFETY: loading runs the library's initialisers. Its path is the site's own choice or a
            // name that the system looks up; neither a run nor a slide has a say in it.
            unsafe { Library::new(name) }
        };
        let library = match asked {
            Some(path) => open(path).map_err(|error| {
                let what = format!("{} cannot be loaded: {}", path.display(), first_line(&error));
                SlideProblem::Library { what }
            })?,
            None => NAMES.iter().find_map(|name| open(Path::new(name)).ok()).ok_or_else(|| {
                let what = format!("none of {} is installed", NAMES.join(", "));
                SlideProblem::Library { what }
            })?,
        };
        Self::of(&library).inspect(|_| {
            // glib, which it brings, does not survive being unloaded.
            std::mem::forget(library);
        })
    }

    fn of(library: &Library) -> Result<Self, SlideProblem> {
        // SAFETY: openslide.h: it takes nothing and gives a static string.
        let version = unsafe {
            let version: unsafe extern "C" fn() -> *const c_char =
                symbol(library, "openslide_get_version")?;
            text(version())
        };
        let version = version.unwrap_or_default();
        let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
        let found = [0; 2].map(|_: u32| numbers.next().unwrap_or(0));
        if found < VERSION_MIN {
            let [major, minor] = VERSION_MIN;
            let what = format!("version `{version}` is older than {major}.{minor}");
            return Err(SlideProblem::Library { what });
        }
        // SAFETY: the types of the fields are those of openslide.h, the same since 3.4.
        unsafe {
            Ok(Self {
                open: symbol(library, "openslide_open")?,
                close: symbol(library, "openslide_close")?,
                get_error: symbol(library, "openslide_get_error")?,
                get_level_count: symbol(library, "openslide_get_level_count")?,
                get_level_dimensions: symbol(library, "openslide_get_level_dimensions")?,
                get_level_downsample: symbol(library, "openslide_get_level_downsample")?,
                get_property_value: symbol(library, "openslide_get_property_value")?,
                read_region: symbol(library, "openslide_read_region")?,
            })
        }
    }
}

/// A function of the library as a plain pointer.
///
/// # Safety
/// `T` is the function's type.
unsafe fn symbol<T: Copy>(library: &Library, name: &'static str) -> Result<T, SlideProblem> {
    // SAFETY: the caller's promise.
    let found = unsafe { library.get::<T>(name) };
    let lacks = |_| SlideProblem::Library { what: format!("the library has no function {name}") };
    found.map(|symbol| *symbol).map_err(lacks)
}

fn first_line(error: &libloading::Error) -> String {
    short(&error.to_string())
}

/// The beginning of the first line, safe to print.
fn short(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    printable(&line.chars().take(TEXT_CHARS_MAX).collect::<String>())
}

/// The beginning of a C string, or none of a null pointer.
///
/// # Safety
/// `pointer` is null, or ends with a zero byte and lives until this returns.
unsafe fn text(pointer: *const c_char) -> Option<String> {
    // SAFETY: the caller's promise.
    let text = (!pointer.is_null()).then(|| unsafe { CStr::from_ptr(pointer) })?;
    Some(short(&text.to_string_lossy()))
}

/// One level.
struct Level {
    width: u32,
    height: u32,
    /// How many pixels of the finest level one of this is wide.
    downsample: f64,
}

/// A slide that OpenSlide opened.
pub(super) struct Reader {
    functions: Arc<Functions>,
    handle: NonNull<Handle>,
    levels: Vec<Level>,
}

// SAFETY: openslide.h: every function may be called from any thread, and a handle is closed once, by
// `drop`, when nobody uses it.
unsafe impl Send for Reader {}

impl Reader {
    /// Opens a slide by the library at `library`, or by the one that the system finds.
    pub(super) fn open(path: &Path, library: Option<&Path>) -> Result<Self, SlideProblem> {
        let functions = self::library(library)?;
        let unreadable = |detail: &str| SlideProblem::Format { detail: detail.to_owned() };
        let name = path.to_str().and_then(|name| CString::new(name).ok());
        let name = name.ok_or_else(|| unreadable("its path is not UTF-8"))?;
        // SAFETY: the name ends with a zero byte and outlives the call.
        let handle = unsafe { (functions.open)(name.as_ptr()) };
        let handle = NonNull::new(handle);
        let handle = handle.ok_or_else(|| unreadable("no kind of slide that OpenSlide knows"))?;
        // From here on `drop` closes it.
        let mut reader = Self { functions, handle, levels: Vec::new() };
        reader.check()?;
        // SAFETY: the handle is open.
        let count = unsafe { (reader.functions.get_level_count)(reader.handle.as_ptr()) };
        if !(1..=LEVELS_MAX as i32).contains(&count) {
            return Err(unreadable(&format!("{count} levels")));
        }
        for level in 0..count {
            let level = reader.level(level)?;
            reader.levels.push(level);
        }
        Ok(reader)
    }

    /// What went wrong so far: the handle keeps its first error and does nothing after it.
    fn check(&self) -> Result<(), SlideProblem> {
        // SAFETY: the handle is open; the text lives as long as it.
        let error = unsafe { text((self.functions.get_error)(self.handle.as_ptr())) };
        error.map_or(Ok(()), |detail| Err(SlideProblem::Format { detail }))
    }

    fn level(&self, level: c_int) -> Result<Level, SlideProblem> {
        let (mut width, mut height) = (0i64, 0i64);
        // SAFETY: the handle is open, the level one of its own, and both numbers outlive the call.
        let downsample = unsafe {
            let handle = self.handle.as_ptr();
            (self.functions.get_level_dimensions)(handle, level, &raw mut width, &raw mut height);
            (self.functions.get_level_downsample)(handle, level)
        };
        self.check()?;
        let side = |length: i64| u32::try_from(length).ok().filter(|length| *length > 0);
        match (side(width), side(height)) {
            (Some(width), Some(height)) if downsample.is_finite() && downsample > 0.0 => {
                Ok(Level { width, height, downsample })
            }
            (_, _) => {
                let detail = format!("a level of {width} x {height} pixels, {downsample} smaller");
                Err(SlideProblem::Format { detail })
            }
        }
    }

    /// Sides of the levels, resolution and magnification, as the slide declares them.
    pub(super) fn description(&self) -> Description {
        Description {
            sides: self.levels.iter().map(|level| (level.width, level.height)).collect(),
            mpp: self.number(c"openslide.mpp-x"),
            objective_power: self.number(c"openslide.objective-power"),
        }
    }

    /// A property that is a number above 0.
    fn number(&self, name: &CStr) -> Option<f64> {
        // SAFETY: the handle is open, the name ends with a zero byte, the value lives as long as the
        // handle.
        let value = unsafe {
            text((self.functions.get_property_value)(self.handle.as_ptr(), name.as_ptr()))
        };
        value?.trim().parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0)
    }

    /// A rectangle of one level on white, three bytes a pixel; beyond the slide it is white too.
    pub(super) fn region(&self, region: Region) -> Result<Vec<u8>, SlideProblem> {
        let Region { level, corner, size: [width, height] } = region;
        if width.max(height) > SQUARE {
            let detail = format!("{width} x {height} pixels at once");
            return Err(SlideProblem::Format { detail });
        }
        let mut pixels = vec![0u32; width as usize * height as usize];
        let downsample = self.levels[level as usize].downsample;
        let [x, y] = corner.map(|at| (f64::from(at) * downsample).round() as i64);
        // SAFETY: the handle is open, the level is one of its own (else `levels` had panicked),
        // and there is room for width x height pixels.
        unsafe {
            let (level, w, h) = (level as i32, i64::from(width), i64::from(height));
            let handle = self.handle.as_ptr();
            (self.functions.read_region)(handle, pixels.as_mut_ptr(), x, y, level, w, h);
        }
        self.check()?;
        Ok(pixels.into_iter().flat_map(on_white).collect())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and this is the only place that closes it.
        unsafe { (self.functions.close)(self.handle.as_ptr()) }
    }
}

/// A pixel of premultiplied ARGB over white: where a scanner saw nothing, there is glass.
fn on_white(argb: u32) -> [u8; 3] {
    let [alpha, red, green, blue] = argb.to_be_bytes();
    [red, green, blue].map(|level| level.saturating_add(255 - alpha))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_white_and_half_of_something_is_half_white() {
        assert_eq!(on_white(0), [255; 3]);
        assert_eq!(on_white(0xFF_01_02_03), [1, 2, 3]);
        // Half covered by (200, 100, 0), premultiplied.
        assert_eq!(on_white(0x80_64_32_00), [227, 177, 127]);
    }

    #[test]
    fn a_library_that_is_none_is_one_line() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let path = folder.path().join("libopenslide.so.1");
        let line = |path: &Path| Functions::load(Some(path)).err().expect("refused").to_string();
        let missing = line(&path);
        std::fs::write(&path, b"no library").expect("written");
        for line in [missing, line(&path)] {
            assert!(line.starts_with("needs OpenSlide, and "), "{line}");
            assert!(line.contains("libopenslide.so.1 cannot be loaded: "), "{line}");
            assert_eq!(line.lines().count(), 1, "{line}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_library_of_something_else_is_told_from_openslide() {
        // The C library is on every such machine, and has none of its functions.
        let line = Functions::load(Some(Path::new("libc.so.6"))).err().expect("refused");
        let line = line.to_string();
        assert!(line.contains("the library has no function openslide_get_version"), "{line}");
    }
}
