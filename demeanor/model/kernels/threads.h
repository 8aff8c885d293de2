// One pool of threads for the process; inside a job, barriers spin and then yield.
#pragma once
#include "vectors.h"
#include <ctime>

namespace {

constexpr int64_t RESTS = 20, LONGEST_REST = 1000000000;  // times what was lost; nanoseconds

struct Pool {
    int n = 1, active = 1;
    int64_t resting_until = 0;         // on the clock
    std::atomic<int64_t> late{0};      // nanoseconds of this call in which the unluckiest thread had no core, if it was a good part
    static int64_t clock() { return std::chrono::steady_clock::now().time_since_epoch().count(); }
    static int64_t processor_time() {
#if defined(__linux__)
        timespec t;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
        return int64_t(t.tv_sec) * 1000000000 + t.tv_nsec;
#else
        return clock();
#endif
    }
    // A thread that waits at a barrier spins, so what the clock shows beyond its processor time is time that others had its core.
    void work(int id) {
        const int64_t began = clock(), busy = processor_time();
        job(argument, id, active);
        const int64_t took = clock() - began, lost = took - (processor_time() - busy);
        // One thread takes `active` times as long as all do undisturbed, so less than that is no reason to go on alone.
        if (lost <= 50000 || lost * active <= took * (active - 1)) return;
        for (int64_t known = late.load(); lost > known && !late.compare_exchange_weak(known, lost);) {}
    }
    std::mutex one;
    std::vector<std::thread> threads;
    std::vector<int> cores;            // that new threads may run on; empty: those of the thread that makes them
    std::atomic<uint32_t> generation{0}, arrived{0}, phase{0}, inner_arrived{0}, inner_phase{0};
    void (*job)(void*, int, int) = nullptr;
    void* argument = nullptr;

    void grow(int wanted) {
        for (; n < wanted; n++) {
            uint32_t seen = generation.load();
            threads.emplace_back([this, id = n, seen]() mutable {
                roam();
                for (;;) {
                    for (int i = 0; i < 2000 && generation.load(std::memory_order_acquire) == seen; i++) pause();
                    while (generation.load(std::memory_order_acquire) == seen) generation.wait(seen);
                    seen = generation.load(std::memory_order_acquire);
                    if (id < active) work(id);
                    barrier();
                }
            });
            threads.back().detach();
        }
    }
    // OpenMP binds the main thread to one core, and a thread inherits that of the thread that makes it.
    void roam() {
#if defined(__linux__)
        if (cores.empty()) return;
        cpu_set_t set;
        CPU_ZERO(&set);
        for (int core : cores) CPU_SET(core, &set);
        sched_setaffinity(0, sizeof(set), &set);
#endif
    }
    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
    void run(void (*what)(void*, int, int), void* with, int wanted) {
        std::lock_guard<std::mutex> alone(one);
        if (wanted > 1 && resting_until && clock() < resting_until) wanted = 1;
        if (wanted == 1) { active = 1; what(with, 0, 1); return; }
        grow(wanted);
        late.store(0, std::memory_order_relaxed);
        job = what; argument = with; active = wanted;
        generation.fetch_add(1, std::memory_order_release);
        generation.notify_all();
        work(0);
        barrier();
        // Somebody else has a core: whoever waits at a barrier waits for a turn of the scheduler. One thread is faster then, and says
        // the same. Several are tried again when RESTS times what was lost has passed, so that trying costs little, and after a second at
        // the latest: a long call beside other work can lose seconds, and one thread for twenty times as long would be dearer.
        const int64_t lost = late.load(std::memory_order_relaxed), rest = RESTS * lost;
        resting_until = lost ? clock() + (rest < LONGEST_REST ? rest : LONGEST_REST) : 0;
    }
    void barrier(int of = 0) {
        uint32_t members = of ? of : n;
        if (members == 1) return;
        std::atomic<uint32_t>& count = of ? inner_arrived : arrived;
        std::atomic<uint32_t>& turn = of ? inner_phase : phase;
        uint32_t now = turn.load(std::memory_order_acquire);
        if (count.fetch_add(1, std::memory_order_acq_rel) + 1 == members) {
            count.store(0, std::memory_order_relaxed);
            turn.store(now + 1, std::memory_order_release);
            return;
        }
        for (int i = 0; turn.load(std::memory_order_acquire) == now; i++) {
            if (i < 3000) pause();
            else sched_yield();
        }
    }
};
Pool& pool() { static Pool* the = new Pool; return *the; }

void share(int64_t work, int id, int of, int64_t& first, int64_t& last) { first = work * id / of; last = work * (id + 1) / of; }

}  // namespace
