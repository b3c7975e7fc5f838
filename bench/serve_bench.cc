// Measures what serving adds to computing. Calls through a real server take
// turns with the same problem on an engine in this process, with a plain gRPC
// echo and with plain sockets. docs/performance.md describes the method.
#include <sys/prctl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <deque>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bench/child_process.h"
#include "bench/contest.h"
#include "bench/grpc_echo.h"
#include "bench/open_loop.h"
#include "bench/records.h"
#include "bench/serving_bars.h"
#include "bench/serving_case.h"
#include "bench/serving_memory.h"
#include "bench/socket_copy.h"
#include "bench/verdicts.h"

namespace attnd::bench {
namespace {

namespace fs = std::filesystem;

struct Flags {
  std::string json_path;
  std::string filter;
  std::string attnd_path;
  ContestOptions contest;
  double open_seconds = 2;
  // If this is set, the program runs the servers of the yardsticks.
  std::string yardstick_address_file;
};

// A server lists its addresses in this order.
constexpr const char* kTransports[] = {"tcp", "unix"};

// Runs in the child process until it is killed.
int ServeYardsticks(const std::string& address_file) {
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  const std::string folder = fs::path(address_file).parent_path().string();
  const EchoServer echo({"127.0.0.1:0", "unix:" + folder + "/echo.sock"});
  const SocketServer sockets(folder + "/copy.sock");
  const std::string unfinished = address_file + ".new";
  std::ofstream file(unfinished);
  for (const auto& address : echo.addresses()) file << address << "\n";
  for (const auto& address : sockets.addresses()) file << address << "\n";
  file.close();
  fs::rename(unfinished, address_file);
  for (;;) pause();
}

void PrintHeader(const char* title) {
  std::printf("\n%-16s %-19s %-9s %7s %9s %9s %9s %9s %7s %6s\n", title, "name",
              "transport", "clients", "rps", "p50 us", "p99 us", "core p50",
              "ratio", "GB/s");
}

void PrintNumber(const Json& r, const char* key, const char* format,
                 const char* none) {
  if (r.contains(key) && r[key].is_number()) {
    std::printf(format, r[key].get<double>());
  } else {
    std::printf("%s", none);
  }
}

void PrintRow(const Json& r) {
  std::printf("%-16s %-19s %-9s %7d", r["case"].get<std::string>().c_str(),
              r["name"].get<std::string>().c_str(),
              r["transport"].get<std::string>().c_str(),
              r["clients"].get<int>());
  PrintNumber(r, "rps", " %9.1f", "         -");
  PrintNumber(r, "p50_us", " %9.0f", "         -");
  PrintNumber(r, "p99_us", " %9.0f", "         -");
  PrintNumber(r, "core_p50_us", " %9.0f", "         -");
  PrintNumber(r, "overhead_ratio", " %7.2f", "       -");
  PrintNumber(r, "payload_gbytes_per_s", " %6.2f", "      -");
  PrintNumber(r, "offered_rps", "  offered %.0f/s", "");
  PrintNumber(r, "refused", ", refused %.0f", "");
  std::printf("\n");
  std::fflush(stdout);
}

class Bench {
 public:
  explicit Bench(Flags flags)
      : flags_(std::move(flags)),
        yardsticks_({"/proc/self/exe", "--yardstick-server=" + (folder_ / "y")},
                    folder_ / "y") {
    StartServer();
  }

  const std::vector<Json>& records() const { return records_; }

  // Measures one case with this many clients. Both transports and the
  // yardsticks run in the same rounds. If there are several clients, the only
  // yardstick is the echo of 1 KiB, beside the smallest call.
  void MeasureClosed(const ServingCase& shape, int clients) {
    Workload workload(shape, clients, ShmSocket());
    std::vector<client::AttentionClient> connections[2];
    Contestant core{.call = [&](int i) { workload.Run(engine_, i); },
                    .clients = clients};
    std::vector<Contestant*> all = {&core};
    Contestant rpc[2];
    for (size_t t = 0; t < 2; ++t) {
      connections[t] =
          Connect(server_->addresses()[t], clients, shape.streamed);
      rpc[t] = {.call =
                    [&, t](int i) {
                      workload.Call(connections[t][static_cast<size_t>(i)], i);
                    },
                .clients = clients};
      all.push_back(&rpc[t]);
    }
    std::deque<Yardstick> yardsticks;
    if (shape.shared_memory || shape.name == "smallest") {
      AddSmallEchoes(clients, yardsticks);
    }
    if (!shape.shared_memory && clients == 1) AddYardsticks(shape, yardsticks);
    std::optional<InlineRival> rival;
    if (shape.streamed) {
      rival.emplace(server_->addresses(), engine_);
      for (Contestant* contestant : rival->contestants()) {
        all.push_back(contestant);
      }
    }
    for (Yardstick& yardstick : yardsticks) {
      all.push_back(&yardstick.contestant);
    }
    RunContest(all, flags_.contest);

    const double core_us = Median(core.samples_us);
    const int64_t bytes = shape.request_bytes() + shape.reply_bytes();
    for (size_t t = 0; t < 2; ++t) {
      Json r = ServingRecord(shape, shape.name, kTransports[t], clients);
      const double p50_us = AddTimes(rpc[t], r);
      r["core_p50_us"] = core_us;
      r["overhead_ratio"] = p50_us / core_us;
      // With several clients, calls wait for each other, and their times say
      // nothing about bytes.
      if (clients == 1 && !shape.shared_memory) {
        AddRate(bytes, p50_us - core_us, r);
      }
      Keep(std::move(r));
    }
    for (size_t t = 0; rival && t < 2; ++t) {
      Json r = ServingRecord(shape, rival->shape.name, kTransports[t], 1);
      AddRate(rival->shape.request_bytes() + rival->shape.reply_bytes(),
              AddTimes(rival->rpc[t], r) - Median(rival->core.samples_us), r);
      Keep(std::move(r));
    }
    for (const Yardstick& yardstick : yardsticks) {
      Json r =
          ServingRecord(shape, yardstick.name, yardstick.transport, clients);
      const double p50_us = AddTimes(yardstick.contestant, r);
      r["request_bytes"] = yardstick.request_bytes;
      r["reply_bytes"] = yardstick.reply_bytes;
      if (clients == 1) {
        AddRate(yardstick.request_bytes + yardstick.reply_bytes, p50_us, r);
      }
      Keep(std::move(r));
    }
  }

  // The rates go beyond what closed loops of four clients have just reached.
  void MeasureOpen(const ServingCase& shape) {
    constexpr int kClients = 4;
    for (size_t t = 0; t < 2; ++t) {
      const auto clients = Connect(server_->addresses()[t], kClients);
      Workload workload(shape, kClients);
      Contestant core{.call = [&](int i) { workload.Run(engine_, i); }};
      Contestant closed{
          .call =
              [&](int i) { workload.Call(clients[static_cast<size_t>(i)], i); },
          .clients = kClients};
      RunContest({&core, &closed}, {.seconds = 1, .min_rounds = 3});
      const double core_us = Median(core.samples_us);
      for (const double share : {0.1, 0.25, 0.5, 0.7, 0.85, 1.0, 1.2}) {
        const double rate = share * closed.rps();
        const OpenLoopResult result =
            RunOpenLoop(shape, clients, rate, flags_.open_seconds);
        Json r = ServingRecord(shape, "open_loop", kTransports[t], kClients);
        r["rps"] = result.answered_per_second;
        r["offered_rps"] = rate;
        r["closed_rps"] = closed.rps();
        r["refused"] = result.refused;
        r["samples"] = result.latencies_us.size();
        if (!result.latencies_us.empty()) {
          r["p50_us"] = Median(result.latencies_us);
          r["p99_us"] = Percentile(result.latencies_us, 0.99);
          r["overhead_ratio"] = Median(result.latencies_us) / core_us;
          r["send_delay_p99_us"] = Percentile(result.send_delays_us, 0.99);
        }
        r["core_p50_us"] = core_us;
        Keep(std::move(r));
      }
    }
  }

  // Each measurement uses a server that has done nothing yet.
  void MeasureMemory() {
    StartServer();
    std::vector<Json> measured = MeasureServerMemory(*server_);
    StartServer();
    measured.push_back(MeasureStreamPeak(*server_));
    for (Json& r : measured) {
      std::printf("%s\n", r.dump().c_str());
      records_.push_back(std::move(r));
    }
    StartServer();
    records_.push_back(MeasureSharedMemoryPeak(*server_, ShmSocket()));
    std::printf("%s\n", records_.back().dump().c_str());
  }

 private:
  struct Yardstick {
    std::string name;
    std::string transport;
    int64_t request_bytes = 0;
    int64_t reply_bytes = 0;
    Contestant contestant;
  };

  // Makes the largest inline calls, in the same rounds as a stream.
  struct InlineRival {
    InlineRival(const std::vector<std::string>& addresses,
                AttentionEngine& engine) {
      core.call = [this, &engine](int) { workload.Run(engine, 0); };
      for (size_t t = 0; t < 2; ++t) {
        clients.push_back(Connect(addresses[t], 1).front());
        rpc[t].call = [this, t](int) { workload.Call(clients[t], 0); };
      }
    }
    InlineRival(const InlineRival&) = delete;
    InlineRival& operator=(const InlineRival&) = delete;

    std::vector<Contestant*> contestants() { return {&core, &rpc[0], &rpc[1]}; }

    ServingCase shape = LargestInlineCase();
    Workload workload{shape, 1};
    std::vector<client::AttentionClient> clients;
    Contestant core;
    Contestant rpc[2];
  };

  void StartServer() {
    server_.reset();
    const std::string file = folder_ / "attnd";
    server_.emplace(
        std::vector<std::string>{
            flags_.attnd_path,
            "--listen=127.0.0.1:0,unix:" + (folder_ / "attnd.sock"),
            "--admin-listen=", "--shm-socket=" + ShmSocket(),
            "--address-file=" + file, "--log-level=error"},
        file);
  }
  std::string ShmSocket() const { return folder_ / "shm.sock"; }

  // Adds a yardstick with as many callers as there are `clients`.
  template <typename Client>
  static void Add(const std::string& name, size_t t, int64_t request_bytes,
                  int64_t reply_bytes,
                  std::vector<std::shared_ptr<Client>> clients,
                  void (Client::*call)(), std::deque<Yardstick>& to) {
    const int count = static_cast<int>(clients.size());
    to.push_back(
        {.name = name,
         .transport = kTransports[t],
         .request_bytes = request_bytes,
         .reply_bytes = reply_bytes,
         .contestant = {.call =
                            [clients = std::move(clients), call](int i) {
                              Client& client = *clients[static_cast<size_t>(i)];
                              (client.*call)();
                            },
                        .clients = count}});
  }

  void AddSmallEchoes(int callers, std::deque<Yardstick>& to) {
    constexpr int64_t kBytes = 1024;
    for (size_t t = 0; t < 2; ++t) {
      std::vector<std::shared_ptr<EchoClient>> clients;
      clients.reserve(static_cast<size_t>(callers));
      for (int i = 0; i < callers; ++i) {
        clients.push_back(std::make_shared<EchoClient>(
            yardsticks_.addresses()[t], kBytes, kBytes));
      }
      Add("grpc_echo_1_kib", t, kBytes, kBytes, std::move(clients),
          &EchoClient::CallRaw, to);
    }
  }

  void AddYardsticks(const ServingCase& shape, std::deque<Yardstick>& to) {
    const int64_t in = shape.request_bytes(), out = shape.reply_bytes();
    for (size_t t = 0; t < 2; ++t) {
      const std::string& echo = yardsticks_.addresses()[t];
      const std::string& copy = yardsticks_.addresses()[2 + t];
      const std::vector echoes = {std::make_shared<EchoClient>(echo, in, out)};
      Add("grpc_echo", t, in, out, echoes, &EchoClient::CallRaw, to);
      Add("grpc_echo_protobuf", t, in, out, echoes, &EchoClient::CallProtobuf,
          to);
      Add("socket_copy", t, in, out,
          std::vector{std::make_shared<SocketClient>(copy, in, out)},
          &SocketClient::Call, to);
    }
  }

  // Returns the p50.
  static double AddTimes(const Contestant& contestant, Json& record) {
    const double p50_us = Median(contestant.samples_us);
    record["rps"] = contestant.rps();
    record["p50_us"] = p50_us;
    record["p99_us"] = Percentile(contestant.samples_us, 0.99);
    record["samples"] = contestant.samples_us.size();
    return p50_us;
  }

  // If the difference is lost in the noise of the clock and the machine, there
  // is no rate.
  static void AddRate(int64_t bytes, double us, Json& record) {
    record["payload_gbytes_per_s"] = nullptr;
    if (us > 0) {
      record["payload_gbytes_per_s"] = static_cast<double>(bytes) / us / 1e3;
    }
  }

  void Keep(Json record) {
    PrintRow(record);
    records_.push_back(std::move(record));
  }

  Flags flags_;
  TempFolder folder_;
  // This comes before the engine, because a process must be forked while there
  // is only one thread.
  ChildProcess yardsticks_;
  std::optional<ChildProcess> server_;
  AttentionEngine engine_;
  std::vector<Json> records_;
};

int RunBench(const Flags& flags) {
  const auto wanted = [&](const std::string& name) {
    return name.find(flags.filter) != std::string::npos;
  };
  Bench bench(flags);
  Run run = {.machine = MachineRecord()};
  std::printf("%s\n", run.machine.dump().c_str());
  PrintHeader("closed loops");
  for (const ServingCase& shape : ServingCases()) {
    if (!wanted(shape.name)) continue;
    for (const int clients : {1, 4, 16}) {
      if (clients <= shape.max_clients) bench.MeasureClosed(shape, clients);
    }
  }
  PrintHeader("shared memory");
  for (const ServingCase& shape : SharedMemoryCases()) {
    if (wanted(shape.name)) bench.MeasureClosed(shape, 1);
  }
  if (wanted("open_loop")) {
    PrintHeader("open loop");
    for (const ServingCase& shape : ServingCases()) {
      if (shape.name == "smallest" || shape.name == "short" ||
          shape.name == "medium") {
        bench.MeasureOpen(shape);
      }
    }
  }
  if (wanted("memory")) {
    std::printf("\nmemory of the server\n");
    bench.MeasureMemory();
  }
  run.records = bench.records();
  const std::vector<Verdict> verdicts = JudgeServing(run.records);
  PrintVerdicts(verdicts);
  run.verdicts = VerdictRecords(verdicts);
  if (!flags.json_path.empty() && !WriteRun(run, flags.json_path)) return 1;
  return 0;
}

int Main(int argc, char** argv) {
  Flags flags;
  flags.attnd_path =
      (fs::read_symlink("/proc/self/exe").parent_path() / "../server/attnd")
          .lexically_normal()
          .string();
  CLI::App app(
      "Times calls to a real attnd over TCP and unix sockets, and compares "
      "them with\nthe same problem in this process, a plain gRPC echo and "
      "plain sockets.");
  app.add_option("--json", flags.json_path,
                 "Write the records to this file, one per line");
  app.add_option("--filter", flags.filter,
                 "Run only cases whose name contains this text, also open_loop "
                 "or memory");
  app.add_option("--attnd", flags.attnd_path, "The path of the server")
      ->capture_default_str();
  app.add_option("--rounds", flags.contest.min_rounds,
                 "Measure each case in at least this many rounds")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--seconds", flags.contest.seconds,
                 "Measure each case for this many seconds")
      ->capture_default_str();
  app.add_option("--open-seconds", flags.open_seconds,
                 "Run the open loop for this many seconds at each rate")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--yardstick-server", flags.yardstick_address_file)
      ->group("");  // this program starts itself with it
  CLI11_PARSE(app, argc, argv);
  if (!flags.yardstick_address_file.empty()) {
    return ServeYardsticks(flags.yardstick_address_file);
  }
  return RunBench(flags);
}

}  // namespace
}  // namespace attnd::bench

int main(int argc, char** argv) {
  try {
    return attnd::bench::Main(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "serve_bench: " << error.what() << "\n";
    return 1;
  }
}
