//! What is claimed about scale, locality and losses, in virtual time: each test prints its figures.
//!
//! `cargo test -p mobula-sim-tests --test scale -- --nocapture`

use mobula_sim_tests::scale::fit::{line, spread};
use mobula_sim_tests::scale::linear::{Point, with_nodes, with_shards};
use mobula_sim_tests::scale::locality::{Locality, locality};
use mobula_sim_tests::scale::loss::loss;
use mobula_sim_tests::scale::ramp::{Ramp, ramp};
use mobula_sim_tests::scale::stragglers::stragglers;

/// Prints a table, and how straight its line is.
fn r2(points: &[Point], x: fn(&Point) -> f64) -> f64 {
    println!("nodes  shards   tasks/s  messages/task  items/task");
    for p in points {
        let Point { nodes, shards, tasks_per_s, messages, items } = p;
        println!("{nodes:5}  {shards:6}  {tasks_per_s:8.0}  {messages:13.3}  {items:10.3}");
    }
    let fit = line(&points.iter().map(|p| (x(p), p.tasks_per_s)).collect::<Vec<_>>());
    println!("R² {:.6}, {:.1} tasks/s more for each more", fit.r2, fit.slope);
    fit.r2
}

#[test]
fn throughput_grows_with_the_nodes_and_a_task_costs_as_many_messages() {
    let sizes = [1, 10, 30, 100, 300, 1_000];
    let points: Vec<Point> = sizes.into_iter().map(|nodes| with_nodes(nodes, 16)).collect();
    assert!(r2(&points, |p| p.nodes as f64) >= 0.99);
    assert_eq!(spread(points.iter().map(|p| p.items)), 1.0, "a record and its end");
    // A node alone has nobody to send tasks to. So nothing hurries its records, and they go as they fall due,
    // in many small batches.
    let [alone, rest @ ..] = &points[..] else { unreachable!("there are six") };
    let messages = spread(rest.iter().map(|p| p.messages));
    println!("messages for a task: {messages:.3} times as many at most from 10 nodes on");
    assert!(messages <= 1.1);
    assert!(rest.iter().all(|p| p.messages <= alone.messages));
}

#[test]
fn throughput_grows_with_the_shards() {
    let points: Vec<Point> = [1, 2, 4, 8, 16].into_iter().map(with_shards).collect();
    assert!(r2(&points, |p| f64::from(p.shards)) >= 0.99);
    // Two items for each task, a thousand items a second for each shard.
    assert!(points.iter().all(|p| p.tasks_per_s > 0.95 * 500.0 * f64::from(p.shards)));
}

fn print_ramp(ramp: &Ramp) {
    let Ramp { nodes, drivers, cpus, busy_after, rounds, busy } = ramp;
    let percent = *busy as f64 * 100.0 / *cpus as f64;
    println!(
        "{nodes} nodes, {cpus} CPUs, {drivers} drivers: 95 % busy after {busy_after:?}, {rounds:?} rounds; \
         {busy} busy in the end, {percent:.1} %"
    );
}

#[test]
fn a_large_cluster_is_busy_within_three_rounds() {
    let ramp = ramp(360, 222, 80_000, 1);
    print_ramp(&ramp);
    assert!(ramp.rounds.is_some_and(|rounds| rounds <= 3.0));
}

/// Drivers know what they have sent where, and not what others have. Each keeps twice as many tasks at home as
/// there are CPUs before it sends any away, whereas nodes without a driver get only what is sent to them.
#[test]
fn several_drivers_that_do_not_know_of_each_other_leave_cpus_idle() {
    let busy = |drivers| {
        let ramp = ramp(36, 222, 7_992, drivers);
        print_ramp(&ramp);
        ramp.busy as f64 / ramp.cpus as f64
    };
    let reached = [1, 2, 4, 9, 18, 36].map(busy);
    assert!(reached[0] >= 0.95 && reached[5] == 1.0);
    // Not what it should be: this is what there is, so that it does not become less.
    assert!(reached.into_iter().all(|busy| busy >= 0.5));
}

#[test]
fn losing_nodes_costs_what_they_ran_and_no_more() {
    let loss = loss();
    println!("{loss:?}");
    assert!(loss.fewest * 100 >= loss.surviving * 95);
}

#[test]
fn a_slow_node_is_not_waited_for_where_its_tasks_may_run_twice() {
    let (waits, hedges) = (stragglers(0), stragglers(50));
    println!("without hedges: {waits:?}\nat most 5 %:    {hedges:?}");
    assert_eq!((waits.hedges, waits.ended, hedges.ended), (0, 2_000, 2_000));
    assert!(hedges.tail * 2 <= waits.tail, "half the tail at most");
    assert!(hedges.took < waits.took && hedges.hedges * 20 <= hedges.ended);
}

#[test]
fn tasks_go_to_their_data() {
    let sizes = [100_000, 1_000_000, 10_000_000, 100_000_000];
    let both = sizes.map(|bytes| [true, false].map(|aware| locality(bytes, aware)));
    println!("bytes of each input  aware (transfers)  unaware (transfers)");
    for [aware, unaware] in &both {
        let show = |l: &Locality| format!("{:.3} s ({:3})", l.took.as_secs_f64(), l.transfers);
        println!("{:19}  {}    {}", aware.bytes, show(aware), show(unaware));
    }
    let flat = spread(both.iter().map(|[aware, _]| aware.took.as_secs_f64()));
    let [aware, unaware] = both[3].map(|l| l.took.as_secs_f64());
    println!("aware: {flat:.2} times as long at most; unaware at 100 MB: {:.0} times", unaware / aware);
    assert!(flat <= 1.2 && unaware >= 10.0 * aware);
}

#[test]
fn what_happens_is_the_same_every_time() {
    assert_eq!(with_nodes(20, 4), with_nodes(20, 4));
    assert_eq!(locality(1_000_000, true), locality(1_000_000, true));
}
