// Loads a running server with calls and prints as JSON how many of them it
// answers. bench/capacity_check.py runs this program.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <iostream>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "bench/open_loop.h"
#include "bench/records.h"
#include "bench/serving_case.h"

namespace attnd::bench {
namespace {

struct Flags {
  std::string server;
  std::string shm_socket;
  std::vector<std::string> calls;
  int clients = 8;
  double seconds = 5;
  double rate = 0;
};

// A kind of call, and how many of them a block of calls has.
struct Kind {
  ServingCase shape;
  int64_t count = 1;
};

// Parses COUNT:Q_HEADS:KV_HEADS:Q_LEN:KV_LEN:HEAD_DIM:TRANSPORT.
Kind ParseKind(const std::string& text) {
  Kind kind;
  std::vector<std::string> parts = CLI::detail::split(text, ':');
  if (parts.size() != 7) {
    throw std::runtime_error("--call: expected 7 parts, got " + text);
  }
  int64_t* const numbers[] = {&kind.count,          &kind.shape.q_heads,
                              &kind.shape.kv_heads, &kind.shape.q_len,
                              &kind.shape.kv_len,   &kind.shape.head_dim};
  for (size_t i = 0; i < 6; ++i) *numbers[i] = std::stoll(parts[i]);
  kind.shape.name = text;
  kind.shape.streamed = parts[6] == "stream";
  kind.shape.shared_memory = parts[6] == "shared-memory";
  return kind;
}

// Runs `call(client, i)` for each i below `count`, from all clients at once.
// Throws what a call throws.
template <typename Call>
void RunAll(int clients, size_t count, const Call& call) {
  std::atomic<size_t> next{0};
  std::vector<std::exception_ptr> errors(static_cast<size_t>(clients));
  std::vector<std::thread> threads;
  threads.reserve(static_cast<size_t>(clients));
  for (int client = 0; client < clients; ++client) {
    threads.emplace_back([&, client] {
      try {
        for (size_t i = next++; i < count; i = next++) call(client, i);
      } catch (...) {
        errors[static_cast<size_t>(client)] = std::current_exception();
        next = count;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

// Makes whole blocks of calls for about flags.seconds. A block has each kind
// `count` times, in random order, so that every run has the same mix.
Json RunClosedLoop(const Flags& flags, const std::vector<Kind>& kinds) {
  std::vector<std::unique_ptr<Workload>> workloads;
  std::vector<std::vector<client::AttentionClient>> clients;
  std::vector<size_t> block;
  for (size_t i = 0; i < kinds.size(); ++i) {
    workloads.push_back(std::make_unique<Workload>(
        kinds[i].shape, flags.clients, flags.shm_socket));
    clients.push_back(
        Connect(flags.server, flags.clients, kinds[i].shape.streamed));
    block.insert(block.end(), static_cast<size_t>(kinds[i].count), i);
  }
  std::mt19937_64 rng(1);
  std::shuffle(block.begin(), block.end(), rng);
  const auto call = [&](int client, size_t kind) {
    workloads[kind]->Call(clients[kind][static_cast<size_t>(client)], client);
  };
  for (size_t kind = 0; kind < kinds.size(); ++kind) {
    for (int i = 0; i < flags.clients; ++i) call(i, kind);
  }
  using Clock = std::chrono::steady_clock;
  const auto timed = [&](size_t blocks) {
    const Clock::time_point start = Clock::now();
    RunAll(flags.clients, blocks * block.size(), [&](int client, size_t i) {
      call(client, block[i % block.size()]);
    });
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  // Enough blocks that every client makes some calls, and then as many as fit
  // into the time.
  const size_t first = 1 + static_cast<size_t>(flags.clients) / block.size();
  const double seconds_of_block = timed(first) / static_cast<double>(first);
  const auto blocks = std::max<size_t>(
      first, static_cast<size_t>(flags.seconds / seconds_of_block));
  const double seconds = timed(blocks);
  const size_t made = blocks * block.size();
  return {{"calls", made},
          {"seconds", seconds},
          {"calls_per_second", static_cast<double>(made) / seconds}};
}

Json RunAtRate(const Flags& flags, const Kind& kind) {
  const OpenLoopResult result =
      RunOpenLoop(kind.shape, Connect(flags.server, 4, kind.shape.streamed),
                  flags.rate, flags.seconds);
  return {{"calls", result.latencies_us.size()},
          {"refused", result.refused},
          {"calls_per_second", result.answered_per_second},
          {"p50_ms", Median(result.latencies_us) / 1e3},
          {"p99_ms", Percentile(result.latencies_us, 0.99) / 1e3}};
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app("Loads a server with calls and prints what it answers as JSON.");
  app.add_option("--server", flags.server, "The address of the server")
      ->required();
  app.add_option("--shm-socket", flags.shm_socket,
                 "The server's socket for shared memory");
  app.add_option("--call", flags.calls,
                 "A kind of call, and how often it is in a block of calls: "
                 "COUNT:Q_HEADS:KV_HEADS:Q_LEN:KV_LEN:HEAD_DIM:TRANSPORT. "
                 "Several make a mix")
      ->required();
  app.add_option("--clients", flags.clients,
                 "How many clients call at the same time")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--seconds", flags.seconds, "For how many seconds")
      ->capture_default_str();
  app.add_option("--rate", flags.rate,
                 "Instead, make calls of the first kind at random times, with "
                 "this many per second on average");
  CLI11_PARSE(app, argc, argv);
  std::vector<Kind> kinds;
  kinds.reserve(flags.calls.size());
  for (const std::string& call : flags.calls) kinds.push_back(ParseKind(call));
  const Json result = flags.rate > 0 ? RunAtRate(flags, kinds.front())
                                     : RunClosedLoop(flags, kinds);
  std::cout << result.dump() << "\n";
  return 0;
}

}  // namespace
}  // namespace attnd::bench

int main(int argc, char** argv) {
  try {
    return attnd::bench::Main(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "call_load: " << error.what() << "\n";
    return 1;
  }
}
