// Calls two servers of the contract with the same tensors, in turns, and prints
// a line of JSON for the machine, and one for each case and number of callers.
// bench/pytorch_server/compare.py runs this program.
#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <exception>
#include <iostream>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "bench/contest.h"
#include "bench/records.h"
#include "bench/serving_case.h"

namespace attnd::bench {
namespace {

struct Flags {
  std::string attnd;
  std::string other;
  std::string transport;
  std::string filter;
  ContestOptions contest = {.seconds = 10, .min_rounds = 7};
};

// The largest relative difference of two answers (root mean square).
constexpr double kTolerance = 1e-4;

// The serving benchmark measures all of these except the causal one.
std::vector<ServingCase> ComparedCases() {
  std::vector<ServingCase> cases;
  for (const ServingCase& shape : ServingCases()) {
    if (shape.name == "smallest" || shape.name == "short" ||
        shape.name == "medium") {
      cases.push_back(shape);
    }
  }
  cases.push_back({.name = "causal",
                   .q_heads = 8,
                   .kv_heads = 8,
                   .q_len = 2048,
                   .kv_len = 2048,
                   .head_dim = 128,
                   .causal = true});
  for (const ServingCase& shape : ServingCases()) {
    if (shape.name == "decode") cases.push_back(shape);
  }
  return cases;
}

double RelativeDifference(std::span<const float> answer,
                          std::span<const float> expected) {
  double difference = 0;
  double size = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(double{answer[i]} - double{expected[i]}, 2);
    size += std::pow(double{expected[i]}, 2);
  }
  return std::sqrt(difference / size);
}

// Makes the calls of one server.
class Caller {
 public:
  Caller(const std::string& address, const ServingCase& shape, int clients)
      : connections_(Connect(address, clients)),
        workload_(shape, clients),
        contestant_{.call =
                        [this](int i) {
                          workload_.Call(connections_[static_cast<size_t>(i)],
                                         i);
                        },
                    .clients = clients} {}
  Caller(const Caller&) = delete;
  Caller& operator=(const Caller&) = delete;

  std::span<const float> Answer() {
    contestant_.call(0);
    return workload_.Output(0);
  }
  Contestant& contestant() { return contestant_; }

 private:
  std::vector<client::AttentionClient> connections_;
  Workload workload_;
  Contestant contestant_;
};

Json Measure(const ServingCase& shape, int clients, const Flags& flags) {
  Caller attnd(flags.attnd, shape, clients);
  Caller other(flags.other, shape, clients);
  const double difference = RelativeDifference(attnd.Answer(), other.Answer());
  if (!(difference <= kTolerance)) {
    throw std::runtime_error(shape.name +
                             ": the answers of the two servers differ by " +
                             std::to_string(difference) + " (relative rms)");
  }
  RunContest({&attnd.contestant(), &other.contestant()}, flags.contest);
  Json r = ServingRecord(shape, shape.name, flags.transport, clients);
  for (const char* key :
       {"rps", "p50_us", "p99_us", "core_p50_us", "overhead_ratio"}) {
    r.erase(key);
  }
  r["client"] = "C++";
  r["causal"] = shape.causal;
  r["difference"] = difference;
  const auto add = [&r](const std::string& server, const Contestant& it) {
    r[server + "_p50_us"] = Median(it.samples_us);
    r[server + "_rps"] = it.rps();
    r[server + "_samples"] = it.samples_us.size();
  };
  add("attnd", attnd.contestant());
  add("pytorch", other.contestant());
  return r;
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app(
      "Calls attnd and another server of the contract with the same tensors, "
      "in\nturns, and prints the p50 and the rate of both as JSON. First "
      "compares their\nanswers.");
  app.add_option("--attnd", flags.attnd, "The address of attnd")->required();
  app.add_option("--other", flags.other, "The address of the other server")
      ->required();
  app.add_option("--transport", flags.transport,
                 "What the records call the kind of the addresses")
      ->required();
  app.add_option("--filter", flags.filter,
                 "Run only cases whose name contains this text");
  app.add_option("--rounds", flags.contest.min_rounds,
                 "Measure each case in at least this many rounds")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--seconds", flags.contest.seconds,
                 "Measure each case for this many seconds")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  std::cout << MachineRecord().dump() << '\n' << std::flush;
  for (const ServingCase& shape : ComparedCases()) {
    if (shape.name.find(flags.filter) == std::string::npos) continue;
    for (const int clients : {1, 4}) {
      std::cout << Measure(shape, clients, flags).dump() << '\n' << std::flush;
    }
  }
  return 0;
}

}  // namespace
}  // namespace attnd::bench

int main(int argc, char** argv) {
  try {
    return attnd::bench::Main(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "compare_servers: " << error.what() << "\n";
    return 1;
  }
}
