//! A task of a random program, as a worker process runs it: step by step by the interpreter's script.

use mobula::{Client, Error, Many, ObjectRef};
use mobula_base::ObjectId;
use mobula_chaos::content::Content;
use mobula_chaos::program::{self, Body, End, Locals, Op, Style, Submission, picked, picked_all};
use mobula_chaos::scenario::Work;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// The program that a task is of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Program {
    /// Decides everything.
    pub seed: u64,
    /// Which kind.
    pub work: Work,
    /// Where each execution is written down, for the judge.
    pub log: String,
}

/// What a task is given by value.
#[derive(Clone, Serialize, Deserialize)]
struct What {
    program: Program,
    seed: u64,
    depth: u8,
    nested: Vec<ObjectRef<Content>>,
}

/// References by their objects.
pub type References = BTreeMap<ObjectId, ObjectRef<Content>>;

/// A task waits no longer for something to exist: by then its run is over.
const WAIT_MAX: Duration = Duration::from_secs(3600);

thread_local! {
    /// Drawing it takes longer than most tasks do.
    static STYLE: RefCell<Option<(u64, Work, Rc<Style>)>> = const { RefCell::new(None) };
}

/// What a program is like.
pub fn style(program: &Program) -> Rc<Style> {
    STYLE.with_borrow_mut(|last| match last {
        Some((seed, work, style)) if (*seed, *work) == (program.seed, program.work) => style.clone(),
        _ => {
            let style = Rc::new(Style::of_processes(program.seed, program.work));
            *last = Some((program.seed, program.work, style.clone()));
            style
        }
    })
}

/// Submits a task.
pub fn submit(
    client: &Client,
    program: &Program,
    task: &Submission,
    refs: &References,
) -> ObjectRef<Content> {
    let body = style(program).body(task.seed, task.depth);
    let of = |ids: &[ObjectId]| ids.iter().filter_map(|id| refs.get(id).cloned()).collect::<Vec<_>>();
    let (seed, depth, nested) = (task.seed, task.depth, of(&task.nested));
    let what = What { program: program.clone(), seed, depth, nested };
    let cpus = f64::from(body.cpu_milli) / 1000.0;
    client.submit(compute::task(what, of(&task.args)).retries(body.retries).cpus(cpus))
}

#[mobula::remote]
fn compute(what: What, given: Many<Content>) -> Result<Content, Error> {
    let client = mobula::current();
    note(&what.program.log, format_args!("run {} {} {}", client.task(), client.attempt(), client.node()));
    let mut run = Run::of(client, what);
    for arg in given.0 {
        run.take(None, arg);
    }
    run.steps()
}

/// Writes a line down for the judge: it is in the kernel's hands when this returns, whatever becomes of this process.
pub fn note(log: &str, line: std::fmt::Arguments<'_>) {
    let path = Path::new(log).join(format!("{}.runs", std::process::id()));
    let file = File::options().create(true).append(true).open(path);
    // Without it the judge would be blind: the task fails, and with it the run.
    let mut file = file.expect("the directory of a run is writable");
    file.write_all(format!("{line}\n").as_bytes()).expect("a line fits on the disk");
}

/// One execution.
struct Run {
    client: Client,
    program: Program,
    seed: u64,
    depth: u8,
    body: Body,
    inputs: Vec<u64>,
    locals: Locals,
    refs: References,
}

impl Run {
    fn of(client: Client, what: What) -> Self {
        let body = style(&what.program).body(what.seed, what.depth);
        let given = what.nested.iter().map(ObjectRef::id).collect();
        Run {
            locals: Locals::new(client.task(), given),
            client,
            program: what.program,
            seed: what.seed,
            depth: what.depth,
            body,
            inputs: Vec::new(),
            refs: what.nested.into_iter().map(|reference| (reference.id(), reference)).collect(),
        }
    }

    /// It has a value: its hash counts, and the references in it are the task's.
    fn take(&mut self, from: Option<ObjectId>, content: Content) {
        if let Some(text) = content.torn() {
            note(&self.program.log, format_args!("torn {} {text}", self.client.task()));
        }
        self.inputs.push(content.hash);
        self.locals.take(from, &content.ids());
        for reference in content.refs {
            self.refs.entry(reference.id()).or_insert(reference);
        }
    }

    fn steps(&mut self) -> Result<Content, Error> {
        for op in std::mem::take(&mut self.body.ops) {
            match op {
                // It holds its CPU of the cluster, and leaves that of the machine to others.
                Op::Work(ns) => std::thread::sleep(Duration::from_nanos(ns)),
                Op::Submit { seed, args, nested } => self.submits(seed, &args, &nested),
                Op::Put { seed, len, refs } => self.puts(seed, len, &refs)?,
                Op::Get(pick) => {
                    if let Some(object) = picked(&self.locals.all, pick) {
                        let content = self.refs[&object].get()?;
                        self.take(Some(object), content);
                    }
                }
                // Plain programs have none of these.
                Op::Whim(_) | Op::Cancel(..) | Op::Take(_) => {}
                Op::Drop(pick) => drop(self.locals.forget(pick).map(|object| self.refs.remove(&object))),
                Op::Wait(pick) => {
                    if let Some(object) = picked(&self.locals.all, pick) {
                        self.client.wait(&[self.refs[&object].clone()], 1, WAIT_MAX);
                    }
                }
            }
        }
        match self.body.end {
            End::Error => Err(Error::Value("the program asks for this error".into())),
            // The program asks for it.
            End::Poison => std::process::abort(),
            // None hangs: see `Style::plain`.
            End::Value | End::Hang => {
                let ids = self.locals.for_value(&self.body.returns);
                let inputs = self.inputs.iter().copied();
                let content = program::task_content(self.seed, inputs, self.body.len, ids);
                Ok(Content::new(content.hash, content.len as usize, self.named(&content.refs)))
            }
        }
    }

    fn named(&self, ids: &[ObjectId]) -> Vec<ObjectRef<Content>> {
        ids.iter().map(|id| self.refs[id].clone()).collect()
    }

    fn submits(&mut self, seed: u64, args: &[u64], nested: &[u64]) {
        let (args, nested) = (picked_all(&self.locals.all, args), picked_all(&self.locals.all, nested));
        let given = [&args[..], &nested[..]].concat();
        // The SDK makes the id.
        let (id, parent, depth) = (mobula::TaskId::default(), self.client.task(), self.depth - 1);
        let child = Submission { id, parent, seed, depth, args, nested };
        let reference = submit(&self.client, &self.program, &child, &self.refs);
        self.locals.child(reference.id(), &given);
        self.refs.insert(reference.id(), reference);
    }

    fn puts(&mut self, seed: u64, len: u64, refs: &[u64]) -> Result<(), Error> {
        let content = program::put_content(seed, len, self.locals.for_value(refs));
        let value = Content::new(content.hash, content.len as usize, self.named(&content.refs));
        let reference = self.client.put(&value)?;
        self.locals.put(reference.id());
        self.refs.insert(reference.id(), reference);
        Ok(())
    }
}
