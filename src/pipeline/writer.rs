//! Writing objects: blocks are compressed on all cores, encrypted and uploaded in order.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use age::stream::StreamWriter;
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use walhalla_providers::transfer::Upload;
use walhalla_providers::{ObjectKey, PutMode};

use super::codec::{Checksums, Encoder};
use super::encryption::{CHUNK_BYTES, payload_bytes};
use super::trailer::{self, Trailer};
use super::{
    BLOCK_SIZE_BYTES, BlockDigest, Codec, Compression, Encryption, Error, Packing, QUEUED_BLOCKS,
    Recipients, StoredDigest, StoredHash,
};
use crate::session::StoreSession;
use crate::threads::lock;

/// Longest object that [`Pipeline::create_whole`] sends in one request: a WAL segment of four times the usual size.
const WHOLE_BYTES: usize = 64 << 20;

/// The compressing threads and what they share; ends when the last clone and writer are dropped.
#[derive(Clone)]
pub struct Pipeline {
    session: StoreSession,
    compression: Compression,
    recipients: Option<Arc<Recipients>>,
    /// Whether objects of [`Pipeline::create_whole`] are hashed, too.
    hashes_all: bool,
    /// To the compressing threads; without them whoever writes compresses.
    jobs: Option<Sender<Job>>,
    blocks: Reused,
    frames: Reused,
    seats: Seats,
}

/// Bounds how many writers fill their objects at a time where writers compress: more than there are cores would hold memory
/// and get nothing done sooner. A writer that waits for its store has no seat.
#[derive(Clone)]
struct Seats {
    taken: Sender<()>,
    free: Receiver<()>,
}

/// One of the seats, until it is dropped.
struct Seat {
    free: Receiver<()>,
}

impl Seats {
    fn new(count: usize) -> Self {
        let (taken, free) = crossbeam_channel::bounded(count.max(1));
        Self { taken, free }
    }

    /// Waits for a seat.
    fn take(&self) -> Seat {
        self.taken.send(()).expect("this holds the other end");
        let free = self.free.clone();
        Seat { free }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // Its own word is in there.
        let _ = self.free.try_recv();
    }
}

/// Memory that was used before; new memory costs more than what is done with it. What was used last is still in the cache, and
/// is given out first.
#[derive(Clone)]
struct Reused {
    free: Arc<Mutex<Vec<Vec<u8>>>>,
    /// How many pieces wait for another use at most.
    most: usize,
}

/// Bytes whose memory is used again when they are needed no more.
struct Lent {
    bytes: Vec<u8>,
    from: Reused,
}

impl Reused {
    fn new(most: usize) -> Self {
        let free = Arc::default();
        Self { free, most }
    }

    fn take(&self) -> Option<Vec<u8>> {
        lock(&self.free).pop()
    }

    fn give_back(&self, memory: Vec<u8>) {
        let mut free = lock(&self.free);
        if free.len() < self.most {
            free.push(memory);
        }
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.from.give_back(std::mem::take(&mut self.bytes));
    }
}

/// A block to compress and where its frame goes.
struct Job {
    block: Vec<u8>,
    compression: Compression,
    is_indexed: bool,
    frame: oneshot::Sender<io::Result<Framed>>,
}

/// A frame's bytes, and what an index says of it if the object has one.
struct Framed {
    bytes: Vec<u8>,
    frame: Option<Frame>,
}

/// What the upload of an object is told, in order.
enum Step {
    /// A block's frame will come here.
    Frame(oneshot::Receiver<io::Result<Framed>>),
    /// The object is whole. Without this word it must not be stored.
    End,
}

/// An object on its way: write to it, then [`ObjectWriter::finish`]. Dropping it leaves nothing in the store.
pub struct ObjectWriter {
    pipeline: Pipeline,
    object: Arc<str>,
    block: Vec<u8>,
    filled: usize,
    content_bytes: u64,
    is_indexed: bool,
    /// Of a pipeline without compressing threads.
    encoder: Option<(Kind, Encoder)>,
    /// The same.
    seat: Option<Seat>,
    steps: mpsc::Sender<Step>,
    /// Dropped or sent, it ends the upload at once.
    give_up: Option<oneshot::Sender<()>>,
    upload: Option<JoinHandle<Result<StoredObject, Error>>>,
}

/// An object that is in the store, durably.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredObject {
    /// Length before compression.
    pub content_bytes: u64,
    /// Length in the store.
    pub stored_bytes: u64,
    /// Of the stored bytes, of an object of [`Pipeline::create`] or a pipeline that hashes all.
    pub digest: Option<StoredDigest>,
    /// The checksum in its trailer, of an object of [`Pipeline::create_whole`] that has one.
    pub trailer: Option<[u8; 32]>,
    /// Its frames in order, which are all that is packed in it; none for an object of [`Pipeline::create_whole`].
    pub frames: Vec<Frame>,
}

/// A block of an object's content and the frame that it became: what it takes to read the block alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Length of the block, at most [`BLOCK_SIZE_BYTES`]; 0 only for the one frame of an empty object.
    pub content_bytes: u32,
    /// Length of the frame before encryption; without compression that of the block.
    pub packed_bytes: u32,
    /// Of the block.
    pub digest: BlockDigest,
}

impl Pipeline {
    /// Starts `threads` compressing threads for objects that go to the session's store, encrypted to `recipients` if there are any.
    pub fn new(
        session: StoreSession,
        compression: Compression,
        recipients: Option<Arc<Recipients>>,
        threads: usize,
    ) -> Self {
        let (jobs, queue) = crossbeam_channel::bounded::<Job>(threads);
        let blocks = Reused::new(threads * QUEUED_BLOCKS);
        let frames = Reused::new(threads * QUEUED_BLOCKS);
        for _ in 0..threads.max(1) {
            let (queue, blocks, frames) = (queue.clone(), blocks.clone(), frames.clone());
            thread::spawn(move || compress(&queue, &blocks, &frames));
        }
        Self {
            session,
            compression,
            recipients,
            hashes_all: false,
            jobs: Some(jobs),
            blocks,
            frames,
            seats: Seats::new(threads),
        }
    }

    /// The same pipeline, in which whoever writes an object compresses it: where many objects are written at a time, each block
    /// stays in one core's cache.
    #[must_use]
    pub fn compressing_in_place(&self) -> Self {
        Self {
            jobs: None,
            ..self.clone()
        }
    }

    /// The same pipeline, which hashes the stored bytes of every object.
    #[must_use]
    pub fn hashing_all(&self) -> Self {
        Self {
            hashes_all: true,
            ..self.clone()
        }
    }

    /// The same pipeline with frames around everything: what PostgreSQL keeps no checksum of gets one.
    #[must_use]
    pub fn framed(&self) -> Self {
        Self {
            compression: self.compression.framed(),
            ..self.clone()
        }
    }

    /// The same pipeline without encryption.
    #[must_use]
    pub fn unencrypted(&self) -> Self {
        Self {
            recipients: None,
            ..self.clone()
        }
    }

    /// The same pipeline, with another time for which failed requests are sent again.
    #[must_use]
    pub fn within(&self, deadline: Duration) -> Self {
        Self {
            session: self.session.within(deadline),
            ..self.clone()
        }
    }

    /// The same pipeline into the store of `session`.
    #[must_use]
    pub fn into_store(&self, session: &StoreSession) -> Self {
        Self {
            session: session.clone(),
            ..self.clone()
        }
    }

    /// The same pipeline for objects that can be made anew: in a directory their files are not waited for until they are on
    /// the disk.
    #[must_use]
    pub fn for_derived(&self) -> Self {
        Self {
            session: self.session.for_derived(),
            ..self.clone()
        }
    }

    /// The same pipeline for objects that go before all others where there is a rate.
    #[must_use]
    pub fn urgent(&self) -> Self {
        Self {
            session: self.session.urgent(),
            ..self.clone()
        }
    }

    /// Whether an object as urgent as this pipeline's waits for the rate.
    pub fn is_held_back(&self) -> bool {
        self.session.is_held_back()
    }

    /// How objects are packed.
    pub fn packing(&self) -> Packing {
        Packing {
            codec: self.compression.codec(),
            encryption: match self.recipients {
                None => Encryption::None,
                Some(_) => Encryption::Age,
            },
        }
    }

    /// To whom objects are encrypted.
    pub fn recipients(&self) -> &[String] {
        self.recipients
            .as_deref()
            .map(Recipients::texts)
            .unwrap_or_default()
    }

    /// Begins the object `key`, which goes to the store in parts while it is written. It is only
    /// created if no such object is there when it is finished. What is known of its frames comes with it then.
    ///
    /// # Errors
    /// [`Error::Encrypt`].
    pub fn create(&self, key: &ObjectKey) -> Result<ObjectWriter, Error> {
        let upload = self.session.upload(key.clone(), PutMode::Create);
        let wrapping = Wrapping {
            trailer: None,
            encryption: self.encrypting(key, None)?,
            hash: Some(StoredHash::default()),
        };
        let mut writer = self.begin(key, upload, wrapping);
        writer.is_indexed = true;
        Ok(writer)
    }

    /// The same for an object that another server might create at the same moment: in one request up to 64 MiB, which
    /// are held in memory, unless the store's parts are cheap. It is announced to end in a trailer for `name`, and does; an
    /// encrypted one's header tells `content_digest` to all, which is a keyed one.
    ///
    /// # Errors
    /// [`Error::Encrypt`].
    pub fn create_whole(
        &self,
        key: &ObjectKey,
        name: &str,
        content_digest: Option<[u8; 32]>,
    ) -> Result<ObjectWriter, Error> {
        let upload = self.session.upload(key.clone(), PutMode::Create);
        let has_frames = self.compression.codec() != Codec::None;
        let trailer = has_frames.then(|| Trailer::new(name));
        let wrapping = Wrapping {
            trailer,
            encryption: self.encrypting(key, content_digest)?,
            // Nothing names it: the trailer says what there is to say, and a second pass costs as much again.
            hash: self.hashes_all.then(StoredHash::default),
        };
        Ok(self.begin(key, upload.whole_up_to(WHOLE_BYTES), wrapping))
    }

    /// The bytes of an object as [`Pipeline::create_whole`] stores them, made on the calling thread: for content that is short.
    /// It always ends in a trailer for `name`.
    ///
    /// # Errors
    /// [`Error::Encrypt`] and [`Error::Compress`].
    pub fn packed(&self, key: &ObjectKey, name: &str, content: &[u8]) -> Result<Vec<u8>, Error> {
        let mut wrapping = Wrapping {
            trailer: Some(Trailer::new(name)),
            encryption: self.encrypting(key, None)?,
            hash: None,
        };
        let mut packed = || -> io::Result<Vec<u8>> {
            let mut encoder = Encoder::of_length(self.compression.framed(), content.len())?;
            let mut packed = wrapping.begin()?;
            for block in content.chunks(BLOCK_SIZE_BYTES) {
                let (bytes, _) = encoder.frame(block.to_vec(), Vec::new())?;
                let from = self.frames.clone();
                packed.extend_from_slice(&wrapping.frame(Lent { bytes, from })?);
            }
            packed.extend_from_slice(&wrapping.end()?.bytes);
            Ok(packed)
        };
        packed().map_err(|source| Error::Compress {
            object: self.session.object_url(key),
            source,
        })
    }

    fn encrypting(
        &self,
        key: &ObjectKey,
        content_digest: Option<[u8; 32]>,
    ) -> Result<Option<Encrypting>, Error> {
        let recipients = self.recipients.as_deref();
        let encryption = recipients.map(|recipients| Encrypting::new(recipients, content_digest));
        encryption.transpose().map_err(|source| Error::Encrypt {
            object: self.session.object_url(key),
            source: Box::new(source),
        })
    }

    fn begin(&self, key: &ObjectKey, upload: Upload, wrapping: Wrapping) -> ObjectWriter {
        let seat = self.jobs.is_none().then(|| self.seats.take());
        let object: Arc<str> = self.session.object_url(key).into();
        let (steps, queue) = mpsc::channel(QUEUED_BLOCKS);
        let outgoing = Outgoing {
            name: Arc::clone(&object),
            wrapping,
            steps: queue,
            used: self.frames.clone(),
        };
        let (give_up, ended) = oneshot::channel();
        let upload = send(upload, outgoing, ended);
        ObjectWriter {
            object,
            block: self.block(),
            filled: 0,
            content_bytes: 0,
            is_indexed: false,
            encoder: None,
            seat,
            steps,
            give_up: Some(give_up),
            upload: Some(self.session.spawn(upload)),
            pipeline: self.clone(),
        }
    }

    fn block(&self) -> Vec<u8> {
        self.blocks
            .take()
            .unwrap_or_else(|| vec![0; BLOCK_SIZE_BYTES])
    }
}

impl ObjectWriter {
    /// Room in the current block, never empty; follow with [`ObjectWriter::fill`]. Saves a copy over `write`.
    ///
    /// # Errors
    /// An [`io::Error`] that holds the [`Error`] which ended the upload.
    pub fn room(&mut self) -> io::Result<&mut [u8]> {
        if self.filled == self.block.len() {
            self.send_block().map_err(io::Error::other)?;
        }
        Ok(self.block.get_mut(self.filled..).unwrap_or_default())
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// What ended the upload.
    pub fn append(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            if self.filled == self.block.len() {
                self.send_block()?;
            }
            let room = self.block.get_mut(self.filled..).unwrap_or_default();
            let (now, later) = bytes.split_at(bytes.len().min(room.len()));
            room.iter_mut().zip(now).for_each(|(to, from)| *to = *from);
            self.filled += now.len();
            bytes = later;
        }
        Ok(())
    }

    /// Sends the current block on unless it has room for `count` bytes, which must be no more than a block.
    ///
    /// # Errors
    /// As [`ObjectWriter::room`].
    pub fn reserve(&mut self, count: usize) -> io::Result<()> {
        let fits = self.block.len() - self.filled >= count;
        if fits {
            Ok(())
        } else {
            self.send_block().map_err(io::Error::other)
        }
    }

    /// Content bytes written so far.
    pub fn position(&self) -> u64 {
        self.content_bytes + self.filled as u64
    }

    /// Takes the first `count` bytes of [`ObjectWriter::room`] as written.
    pub fn fill(&mut self, count: usize) {
        self.filled = (self.filled + count).min(self.block.len());
    }

    /// Sends the rest and waits until the object is durable in the store.
    ///
    /// # Errors
    /// [`Error::Store`] with `AlreadyExists` when the key is taken; nothing is stored on any error.
    pub fn finish(self) -> Result<StoredObject, Error> {
        self.close()?.wait()
    }

    /// Sends the rest, so that other work can be done until the object is durable.
    ///
    /// # Errors
    /// As [`ObjectWriter::room`].
    pub fn close(mut self) -> Result<Closed, Error> {
        if self.filled > 0 || self.content_bytes == 0 {
            self.send_block()?;
        }
        // A closed channel means that the upload failed; its outcome says why.
        drop(self.steps.blocking_send(Step::End));
        self.seat = None;
        self.encoder = None;
        Ok(Closed(self))
    }

    /// Gives the object up, and waits until the store holds nothing of it.
    pub fn discard(mut self) {
        self.give_up = None;
        self.seat = None;
        drop(self.outcome());
    }

    fn send_block(&mut self) -> Result<(), Error> {
        let next = self.pipeline.block();
        let mut block = std::mem::replace(&mut self.block, next);
        block.truncate(self.filled);
        self.content_bytes += self.filled as u64;
        self.filled = 0;
        let (frame, receiver) = oneshot::channel();
        let job = Job {
            block,
            compression: self.pipeline.compression,
            is_indexed: self.is_indexed,
            frame,
        };
        let queued = self.steps.blocking_send(Step::Frame(receiver)).is_ok();
        if queued && self.compress(job) {
            return Ok(());
        }
        self.outcome().and_then(|_| {
            Err(Error::BrokenOff {
                object: self.object.to_string(),
            })
        })
    }

    /// Has the block compressed; whether that can be.
    fn compress(&mut self, job: Job) -> bool {
        if let Some(jobs) = &self.pipeline.jobs {
            return jobs.send(job).is_ok();
        }
        let Pipeline { blocks, frames, .. } = &self.pipeline;
        frame(&mut self.encoder, job, blocks, frames);
        true
    }

    fn outcome(&mut self) -> Result<StoredObject, Error> {
        let broken_off = || Error::BrokenOff {
            object: self.object.to_string(),
        };
        let upload = self.upload.take().ok_or_else(broken_off)?;
        self.pipeline
            .session
            .join(upload)
            .unwrap_or_else(|_| Err(broken_off()))
    }
}

/// An object whose last bytes are on their way to the store. Dropped, it is given up.
pub struct Closed(ObjectWriter);

impl Closed {
    /// Waits until the object is durable in the store.
    ///
    /// # Errors
    /// As [`ObjectWriter::finish`].
    pub fn wait(mut self) -> Result<StoredObject, Error> {
        let content_bytes = self.0.content_bytes;
        self.0.outcome().map(|stored| StoredObject {
            content_bytes,
            ..stored
        })
    }
}

impl Write for ObjectWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.room()?;
        let count = room.len().min(bytes.len());
        let (room, bytes) = (room.split_at_mut(count).0, bytes.split_at(count).0);
        room.copy_from_slice(bytes);
        self.fill(count);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for ObjectWriter {
    /// Ends an upload that was not finished at once rather than at its next step.
    fn drop(&mut self) {
        if let Some(upload) = self.upload.take() {
            upload.abort();
        }
    }
}

/// Compresses until no writer is left.
fn compress(queue: &Receiver<Job>, blocks: &Reused, rooms: &Reused) {
    let mut encoder = None;
    for job in queue {
        frame(&mut encoder, job, blocks, rooms);
    }
}

/// Makes the frame of a block, and gives its memory back.
fn frame(encoder: &mut Option<(Kind, Encoder)>, job: Job, blocks: &Reused, rooms: &Reused) {
    let content_bytes = job.block.len();
    let digest = job.is_indexed.then(|| BlockDigest::of(&job.block));
    let room = rooms.take().unwrap_or_default();
    // Of what is indexed the stored bytes have a digest as well.
    let checksums = match digest {
        Some(_) => Checksums::Elsewhere,
        None => Checksums::InFrames,
    };
    let encoder = encoder_for(encoder, (job.compression, checksums));
    let result = encoder.and_then(|encoder| encoder.frame(job.block, room));
    let framed = result.map(|(bytes, mut block)| {
        block.resize(BLOCK_SIZE_BYTES, 0);
        blocks.give_back(block);
        let frame = digest.map(|digest| Frame {
            content_bytes: length(content_bytes),
            packed_bytes: length(bytes.len()),
            digest,
        });
        Framed { bytes, frame }
    });
    // A receiver that is gone means that its writer failed or was dropped.
    drop(job.frame.send(framed));
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("no codec makes 4 GiB of a block of 1 MiB")
}

/// What an encoder makes.
type Kind = (Compression, Checksums);

/// The encoder that was used last, or another one for another kind of frames.
fn encoder_for(last: &mut Option<(Kind, Encoder)>, kind: Kind) -> io::Result<&mut Encoder> {
    if last.as_ref().is_none_or(|(of, _)| *of != kind) {
        *last = None;
    }
    let (_, encoder) = match last {
        Some(last) => last,
        none => none.insert((kind, Encoder::new(kind.0, kind.1)?)),
    };
    Ok(encoder)
}

/// What is done to an object's frames before they are stored.
struct Wrapping {
    trailer: Option<Trailer>,
    encryption: Option<Encrypting>,
    /// Of what is stored.
    hash: Option<StoredHash>,
}

impl Wrapping {
    /// What stands before the first frame of content.
    fn begin(&mut self) -> io::Result<Vec<u8>> {
        let first = self.trailer.as_ref().map(|_| trailer::first_frame());
        let stored = match (&mut self.encryption, first.unwrap_or_default()) {
            (None, first) => first,
            (Some(encryption), first) => encryption.write(&first)?,
        };
        self.hash(&stored);
        Ok(stored)
    }

    fn frame(&mut self, frame: Lent) -> io::Result<Bytes> {
        if let Some(trailer) = &mut self.trailer {
            trailer.update(&frame.bytes);
        }
        let stored = match &mut self.encryption {
            None => Bytes::from_owner(frame),
            Some(encryption) => encryption.write(&frame.bytes)?.into(),
        };
        self.hash(&stored);
        Ok(stored)
    }

    fn hash(&mut self, stored: &[u8]) {
        if let Some(hash) = &mut self.hash {
            hash.update(stored);
        }
    }

    /// The last bytes.
    fn end(&mut self) -> io::Result<End> {
        let trailer = self.trailer.take().map(Trailer::frame).unwrap_or_default();
        let checksum = trailer::checksum(&trailer);
        let bytes = match self.encryption.take() {
            None => trailer,
            Some(encryption) => encryption.end(&trailer)?,
        };
        self.hash(&bytes);
        Ok(End {
            bytes,
            trailer: checksum,
            digest: self.hash.take().map(|hash| hash.digest()),
        })
    }
}

/// An object's last bytes, and the checksums that are known with them.
struct End {
    bytes: Vec<u8>,
    trailer: Option<[u8; 32]>,
    digest: Option<StoredDigest>,
}

/// An age file in the making, whose bytes are taken out as they come.
struct Encrypting {
    writer: StreamWriter<Taken>,
    taken: Taken,
}

#[derive(Clone, Default)]
struct Taken(Arc<Mutex<Vec<u8>>>);

impl Encrypting {
    fn new(
        recipients: &Recipients,
        content_digest: Option<[u8; 32]>,
    ) -> Result<Self, age::EncryptError> {
        let taken = Taken::default();
        let writer = recipients.encrypt(content_digest, taken.clone())?;
        Ok(Self { writer, taken })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        // What comes is kept until the store has it, with the chunk that was begun before: at once as long as it becomes.
        self.taken
            .make_room(payload_bytes(bytes.len() as u64 + CHUNK_BYTES));
        self.writer.write_all(bytes)?;
        Ok(self.taken.take())
    }

    fn end(mut self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        self.writer.write_all(bytes)?;
        self.writer.finish().map(|taken| taken.take())
    }
}

impl Taken {
    fn make_room(&self, bytes: u64) {
        let bytes = usize::try_from(bytes).unwrap_or_default();
        lock(&self.0).reserve_exact(bytes);
    }

    fn take(&self) -> Vec<u8> {
        let mut taken = std::mem::take(&mut *lock(&self.0));
        taken.shrink_to_fit();
        taken
    }
}

impl Write for Taken {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Uploads what the steps bring, unless the writer gives it up; then, and after any failure, the store holds nothing of it.
async fn send(
    mut upload: Upload,
    mut object: Outgoing,
    given_up: oneshot::Receiver<()>,
) -> Result<StoredObject, Error> {
    let sent = tokio::select! {
        biased;
        _ = given_up => Err(object.broken_off()),
        sent = object.send(&mut upload) => sent,
    };
    match sent {
        Ok(stored) => Ok(StoredObject {
            stored_bytes: upload.finish().await?,
            ..stored
        }),
        Err(error) => {
            upload.abort().await;
            Err(error)
        }
    }
}

/// An object whose frames come from the compressing threads.
struct Outgoing {
    name: Arc<str>,
    wrapping: Wrapping,
    steps: mpsc::Receiver<Step>,
    /// Where the memory of frames goes.
    used: Reused,
}

impl Outgoing {
    async fn send(&mut self, upload: &mut Upload) -> Result<StoredObject, Error> {
        let mut frames = Vec::new();
        let begin = self.wrapping.begin();
        let begin = begin.map_err(|error| self.failed(error))?;
        upload.write(Bytes::from(begin)).await?;
        while let Step::Frame(frame) = self.steps.recv().await.ok_or_else(|| self.broken_off())? {
            let packed = frame.await.map_err(|_| self.broken_off())?;
            let Framed { bytes, frame } = packed.map_err(|error| self.failed(error))?;
            frames.extend(frame);
            let from = self.used.clone();
            let stored = self.wrapping.frame(Lent { bytes, from });
            upload
                .write(stored.map_err(|error| self.failed(error))?)
                .await?;
        }
        let end = self.wrapping.end();
        let end = end.map_err(|error| self.failed(error))?;
        upload.write(Bytes::from(end.bytes)).await?;
        Ok(StoredObject {
            content_bytes: 0,
            stored_bytes: 0,
            digest: end.digest,
            trailer: end.trailer,
            frames,
        })
    }

    fn broken_off(&self) -> Error {
        Error::BrokenOff {
            object: self.name.to_string(),
        }
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Compress {
            object: self.name.to_string(),
            source,
        }
    }
}
