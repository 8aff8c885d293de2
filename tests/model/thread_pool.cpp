// The thread pool alone: see test_thread_pool.py.
#include "kernels/threads.h"

namespace {
int seen;
void sleep(void* milliseconds, int id, int of) {
    if (id == 0) seen = of;
    if (id == of - 1) std::this_thread::sleep_for(std::chrono::milliseconds(*static_cast<int*>(milliseconds)));
}
}

extern "C" {

// Run a job on two threads, one of which has no core for so long; returns how many threads the pool gave it.
int job(int milliseconds) { pool().run(sleep, &milliseconds, 2); return seen; }
int64_t now() { return Pool::clock(); }
int64_t resting_until() { return pool().resting_until; }
void rest_until(int64_t time) { pool().resting_until = time; }

}
