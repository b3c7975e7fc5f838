// What attnctl top shows. Turns what a server says about its load into rates,
// and these into lines of text or JSON. It makes no calls and reads no clock.
#ifndef ATTND_CLIENT_ATTNCTL_LOAD_REPORT_H_
#define ATTND_CLIENT_ATTNCTL_LOAD_REPORT_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "client/attnctl/session.h"
#include "client/types.h"

namespace attnd::attnctl {

// What a server said about itself at one moment.
struct LoadSample {
  absl::Time time;  // when the answers arrived
  // Unset if the health service did not answer.
  std::optional<client::Health> health;
  absl::StatusOr<client::ServerInfo> info;
};

// Collects the samples of one server. The rates cover the time between the last
// two answers. They cover the time since the server started if there is only
// one answer, or if the server has restarted in between.
class LoadReport {
 public:
  // `server` is the address to show, and `time_zone` that of the times to show.
  LoadReport(std::string server, absl::TimeZone time_zone)
      : server_(std::move(server)), time_zone_(time_zone) {}

  void Add(LoadSample sample);

  // Returns the report as ASCII. No line has more than `columns` characters.
  // The lines are in the order of their importance, so a screen that is too low
  // for all of them can leave out the last ones.
  std::vector<std::string> Lines(size_t columns) const;
  Json ToJson() const;

 private:
  // What the calls of one method, or of all, did in some time.
  struct Change {
    int64_t finished = 0;  // the total after it
    double ended = 0;
    double failed = 0;
    // How many calls succeeded of methods that compute. Only these add to the
    // times of the queue and of the computation.
    double computed = 0;
    double queue_ms = 0;
    double compute_ms = 0;
    double total_ms = 0;
    // Unset if the total has become larger than int64 can hold.
    std::optional<double> flops = 0;
  };
  // The same per second, and the means of the times, which are unset if there
  // were no such calls.
  struct Rates {
    std::string method;
    int64_t finished = 0;
    double finished_per_second = 0;
    double failed_per_second = 0;
    std::optional<double> queue_ms = {};
    std::optional<double> compute_ms = {};
    std::optional<double> total_ms = {};
    // How many calls waited and were computed at a time, on average.
    double waiting = 0;
    double computing = 0;
    std::optional<double> gflops = {};
  };
  enum class Period { kInterval, kSinceStart, kSinceRestart };
  // The last answer.
  struct Known {
    absl::Time time;
    client::ServerInfo info;
  };
  // Why there has been no answer since then.
  struct Outage {
    absl::Time since;
    absl::Status error;
  };

  static Change ChangeBetween(const client::MethodLoad& before,
                              const client::MethodLoad& now);
  static Rates RatesOf(std::string method, const Change& change,
                       double seconds);
  static Json RatesJson(const Rates& rates);
  static bool IsBusier(const Rates& a, const Rates& b) {
    return std::pair(a.computing, a.finished_per_second) >
           std::pair(b.computing, b.finished_per_second);
  }
  // Sets the rates of `now`, which follows `known_`.
  void SetRates(const Known& now);
  // Returns whether the server reports its load.
  bool has_load() const;
  void AppendRates(size_t columns, std::vector<std::string>& lines) const;

  std::string server_;
  absl::TimeZone time_zone_;
  std::optional<client::Health> health_;  // of the last sample
  std::optional<Known> known_;
  std::optional<Outage> outage_;  // set if the last sample has no answer
  // The rates of `known_`, and what they cover.
  Period period_ = Period::kSinceStart;
  absl::Duration covered_;
  Rates all_;
  std::vector<Rates> methods_;  // the busiest first
};

// Returns exactly `rows` lines: `lines` and, in the last one, `footer`. If
// `lines` are too many, leaves out the last ones, and says so in the last line.
std::vector<std::string> FitRows(std::vector<std::string> lines,
                                 absl::string_view footer, size_t rows,
                                 size_t columns);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_LOAD_REPORT_H_
