use devstack::{ClusterOptions, Redis, RedisCluster, Role};

/// One key in the slots of each initial master.
const KEYS: [&str; 3] = ["b", "c", "a"];

fn start() -> RedisCluster {
    RedisCluster::start(&ClusterOptions::default()).unwrap()
}

#[test]
fn serves_every_range_of_slots_with_a_replica_each() {
    let cluster = start();
    let (masters, replicas) = cluster.nodes().split_at(3);
    for ((master, replica), key) in masters.iter().zip(replicas).zip(KEYS) {
        assert_eq!(master.role().unwrap(), Role::Master);
        assert_eq!(replica.role().unwrap(), Role::Replica);
        assert_eq!(master.command(&["SET", key, "value"]).unwrap(), "OK");
        crate::eventually("the replica has the key", || {
            replica.command(&["DBSIZE"]).unwrap() == "1"
        });
    }
    let ports: Vec<u16> = masters.iter().map(Redis::port).collect();
    let [first, second, third] = ports[..] else { panic!("three masters") };
    assert_eq!(
        cluster.url(),
        format!("redis-cluster://127.0.0.1:{first}?node=127.0.0.1:{second}&node=127.0.0.1:{third}")
    );
}

#[test]
fn a_replica_takes_over_from_a_killed_master_and_keeps_its_keys() {
    let cluster = start();
    let (master, replica) = (&cluster.nodes()[0], &cluster.nodes()[3]);
    master.command(&["SET", KEYS[0], "value"]).unwrap();
    master.command(&["WAIT", "1", "1000"]).unwrap();
    master.kill();
    crate::eventually("the replica is master", || replica.role().unwrap() == Role::Master);
    cluster.wait_until_sound().unwrap();
    assert_eq!(replica.command(&["GET", KEYS[0]]).unwrap(), "value");
    master.start_again().unwrap();
    crate::eventually("the old master follows", || {
        master.role().is_ok_and(|role| role == Role::Replica)
    });
    cluster.wait_until_sound().unwrap();
}
