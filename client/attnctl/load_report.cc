#include "client/attnctl/load_report.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/checked_math.h"
#include "client/attnctl/commands.h"
#include "core/printable.h"

namespace attnd::attnctl {
namespace {

// Servers and clients read their clocks at different moments of a call.
constexpr absl::Duration kClockTolerance = absl::Seconds(1);

// Returns `text` as ASCII of at most `columns` characters. It is unknown how
// wide a terminal draws other characters, so each of them becomes a "?". If the
// text is longer, the result ends with "...".
std::string Cut(absl::string_view text, size_t columns) {
  std::string plain;
  for (const char c : Printable(text)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x80) plain += c;
    if (byte >= 0xc0) plain += '?';  // the first byte of a character
  }
  if (plain.size() <= columns) return plain;
  plain.resize(columns);
  if (columns >= 6) plain.replace(columns - 3, 3, "...");
  return plain;
}

// Formats a number that is not negative in at most 6 characters.
std::string Compact(double value) {
  static constexpr std::array<const char*, 6> kUnits = {"k", "M", "G",
                                                        "T", "P", "E"};
  if (!(value > 0)) return "0";
  if (value < 0.01) return "<0.01";
  if (value < 10) return absl::StrFormat("%.2f", value);
  if (value < 100) return absl::StrFormat("%.1f", value);
  if (value < 100'000) return absl::StrFormat("%.0f", value);
  size_t unit = 0;
  value /= 1000;
  while (value >= 1000 && unit + 1 < kUnits.size()) {
    value /= 1000;
    ++unit;
  }
  if (value >= 1000) return ">999E";
  return absl::StrFormat("%.0f%s", value, kUnits[unit]);
}

std::string Compact(const std::optional<double>& value) {
  return value ? Compact(*value) : "-";
}

std::string CompactCount(int64_t count) {
  return count < 100'000 ? absl::StrCat(std::max<int64_t>(count, 0))
                         : Compact(static_cast<double>(count));
}

// How much of a limited resource is in use.
struct Gauge {
  const char* label;
  int64_t used;
  int64_t limit;
  std::string text;  // "4 of 16"
};

std::string GaugeLine(const Gauge& gauge, size_t columns) {
  constexpr size_t kTexts = 45;  // all columns of a line except the bar
  const size_t cells = std::max(columns, kTexts + 10) - kTexts;
  double share = 0;
  if (gauge.limit > 0) {
    share = std::max(0.0, static_cast<double>(gauge.used) /
                              static_cast<double>(gauge.limit));
  }
  // A bar that is not empty says that something is in use.
  auto filled = static_cast<size_t>(
      std::ceil(std::min(share, 1.0) * static_cast<double>(cells)));
  const std::string percent =
      gauge.limit > 0 ? absl::StrFormat("%.0f %%", std::min(share * 100, 999.0))
                      : "-";
  return absl::StrFormat("%-11s [%s%s] %24s %5s", gauge.label,
                         std::string(filled, '#'),
                         std::string(cells - filled, '.'), gauge.text, percent);
}

// Returns whether `now` can be the totals of a method some time after `before`,
// in the same run of the server. The operations do not count: a fast server can
// exceed what their total can hold within weeks.
bool Continues(const client::MethodLoad& before,
               const client::MethodLoad& now) {
  return now.method == before.method && now.finished >= before.finished &&
         now.failed >= before.failed && now.queue_time >= before.queue_time &&
         now.compute_time >= before.compute_time &&
         now.total_time >= before.total_time;
}

// Returns `left`, and `right` at the end of the line.
std::string TwoSides(absl::string_view left, absl::string_view right,
                     size_t columns) {
  if (columns < right.size() + 20) return Cut(left, columns);
  const size_t width = columns - right.size();
  return absl::StrFormat("%-*s%s", static_cast<int>(width),
                         Cut(left, width - 1), right);
}

}  // namespace

LoadReport::Change LoadReport::ChangeBetween(const client::MethodLoad& before,
                                             const client::MethodLoad& now) {
  const auto difference = [](int64_t from, int64_t to) {
    return static_cast<double>(to) - static_cast<double>(from);
  };
  Change change{
      .finished = now.finished,
      .ended = difference(before.finished, now.finished),
      .failed = difference(before.failed, now.failed),
      .queue_ms =
          absl::ToDoubleMilliseconds(now.queue_time - before.queue_time),
      .compute_ms =
          absl::ToDoubleMilliseconds(now.compute_time - before.compute_time),
      .total_ms =
          absl::ToDoubleMilliseconds(now.total_time - before.total_time)};
  if (now.compute_time > absl::ZeroDuration()) {
    change.computed = std::max(0.0, change.ended - change.failed);
  }
  if (now.flops < kMaxInt64 && now.flops >= before.flops) {
    change.flops = difference(before.flops, now.flops);
  } else {
    change.flops.reset();
  }
  return change;
}

LoadReport::Rates LoadReport::RatesOf(std::string method, const Change& change,
                                      double seconds) {
  Rates rates{.method = std::move(method), .finished = change.finished};
  if (seconds > 0) {
    rates.finished_per_second = change.ended / seconds;
    rates.failed_per_second = change.failed / seconds;
    rates.waiting = change.queue_ms / 1e3 / seconds;
    rates.computing = change.compute_ms / 1e3 / seconds;
    if (change.flops) rates.gflops = *change.flops / seconds / 1e9;
  }
  if (change.ended > 0) rates.total_ms = change.total_ms / change.ended;
  if (change.computed > 0) {
    rates.queue_ms = change.queue_ms / change.computed;
    rates.compute_ms = change.compute_ms / change.computed;
  }
  return rates;
}

void LoadReport::Add(LoadSample sample) {
  health_ = sample.health;
  if (!sample.info.ok()) {
    outage_ = {outage_ ? outage_->since : sample.time, sample.info.status()};
    return;
  }
  outage_.reset();
  Known now{sample.time, *std::move(sample.info)};
  SetRates(now);
  known_ = std::move(now);
}

void LoadReport::SetRates(const Known& now) {
  const client::ServerLoad& load = now.info.load;
  std::vector<client::MethodLoad> before(load.methods.size());
  period_ = Period::kSinceStart;
  covered_ = load.uptime;
  if (known_) {
    const client::ServerLoad& earlier = known_->info.load;
    // The times are the server's own, so that delays of the network do not
    // change the rates.
    const absl::Duration elapsed = load.uptime - earlier.uptime;
    bool same = elapsed > absl::ZeroDuration() &&
                elapsed <= now.time - known_->time + kClockTolerance &&
                load.methods.size() == earlier.methods.size();
    for (size_t i = 0; same && i < load.methods.size(); ++i) {
      same = Continues(earlier.methods[i], load.methods[i]);
    }
    period_ = same ? Period::kInterval : Period::kSinceRestart;
    if (same) {
      before = earlier.methods;
      covered_ = elapsed;
    }
  }
  const double seconds = absl::ToDoubleSeconds(covered_);
  Change sum;
  methods_.clear();
  for (size_t i = 0; i < load.methods.size(); ++i) {
    const Change change = ChangeBetween(before[i], load.methods[i]);
    const Rates rates = RatesOf(load.methods[i].method, change, seconds);
    // Methods that are equally busy stay in the order of the service.
    methods_.insert(
        std::upper_bound(methods_.begin(), methods_.end(), rates, IsBusier),
        rates);
    sum.finished = SaturatingSum({sum.finished, change.finished});
    sum.ended += change.ended;
    sum.failed += change.failed;
    sum.computed += change.computed;
    sum.queue_ms += change.queue_ms;
    sum.compute_ms += change.compute_ms;
    sum.total_ms += change.total_ms;
    if (!change.flops) sum.flops.reset();
    if (sum.flops) *sum.flops += *change.flops;
  }
  all_ = RatesOf("all", sum, seconds);
}

bool LoadReport::has_load() const {
  return known_ && known_->info.load.uptime > absl::ZeroDuration();
}

void LoadReport::AppendRates(size_t columns,
                             std::vector<std::string>& lines) const {
  struct Column {
    const char* title;
    size_t width;
    std::string (*text)(const Rates& rates);
  };
  static constexpr Column kColumns[] = {
      {"calls/s", 8,
       [](const Rates& rates) { return Compact(rates.finished_per_second); }},
      {"failed/s", 9,
       [](const Rates& rates) { return Compact(rates.failed_per_second); }},
      {"queue ms", 9,
       [](const Rates& rates) { return Compact(rates.queue_ms); }},
      {"compute ms", 11,
       [](const Rates& rates) { return Compact(rates.compute_ms); }},
      {"total ms", 9,
       [](const Rates& rates) { return Compact(rates.total_ms); }},
      {"GFLOP/s", 8, [](const Rates& rates) { return Compact(rates.gflops); }},
      {"calls", 7,
       [](const Rates& rates) { return CompactCount(rates.finished); }}};
  size_t numbers = 0;
  for (const Column& column : kColumns) numbers += column.width;
  size_t name = 19;
  for (const Rates& rates : methods_) {
    name = std::max(name, rates.method.size() + 1);
  }
  // Columns with numbers are worth more than long names.
  name = std::min(name,
                  std::max<size_t>(19, columns - std::min(columns, numbers)));
  const auto row = [&](absl::string_view method, const auto& text_of) {
    std::string line = Cut(method, name - 1);
    line.resize(name, ' ');
    for (const Column& column : kColumns) {
      if (line.size() + column.width > columns) break;
      absl::StrAppendFormat(&line, "%*s", static_cast<int>(column.width),
                            text_of(column));
    }
    return line;
  };
  const char* const since = period_ == Period::kSinceStart
                                ? "since the server started"
                                : "since the server restarted";
  lines.push_back(
      absl::StrFormat("On average %s, %s calls waited and %s were computed.",
                      period_ == Period::kInterval
                          ? absl::StrFormat("over the last %.1f s",
                                            absl::ToDoubleSeconds(covered_))
                          : since,
                      Compact(all_.waiting), Compact(all_.computing)));
  lines.emplace_back();
  lines.push_back(row("method", [](const Column& c) { return c.title; }));
  const auto add = [&](const Rates& rates) {
    lines.push_back(
        row(rates.method, [&](const Column& c) { return c.text(rates); }));
  };
  add(all_);
  for (const Rates& rates : methods_) add(rates);
}

std::vector<std::string> LoadReport::Lines(size_t columns) const {
  const auto clock = [this](absl::Time time) {
    return absl::FormatTime("%H:%M:%S", time, time_zone_);
  };
  std::vector<std::string> lines;
  if (!known_) {
    lines.push_back(absl::StrCat("attnd at ", server_));
  } else {
    lines.push_back(TwoSides(
        absl::StrCat("attnd ", known_->info.version, " at ", server_),
        absl::FormatTime("%Y-%m-%d %H:%M:%S %Z", known_->time, time_zone_),
        columns));
  }
  if (outage_) {
    lines.push_back(absl::StrCat(
        health_ ? absl::StrCat(HealthName(*health_), ", no answer since ")
                : "NOT REACHABLE since ",
        clock(outage_->since), ": ",
        absl::StatusCodeToString(outage_->error.code()), ": ",
        outage_->error.message()));
    if (known_) {
      lines.push_back(absl::StrCat("The numbers below are those of ",
                                   clock(known_->time), "."));
    }
  }
  if (known_) {
    const client::ServerInfo& info = known_->info;
    const client::ServerLoad& load = info.load;
    if (!outage_) {
      lines.push_back(absl::StrCat(
          HealthName(health_.value_or(client::Health::kUnknown)), ", up ",
          FormatUptime(load.uptime), ", ", info.isa, ", ", info.threads,
          info.threads == 1 ? " thread" : " threads"));
      lines.emplace_back();
    }
    const auto of = [](const std::string& used, const std::string& limit) {
      return absl::StrCat(used, " of ", limit);
    };
    const auto counts = [&](int64_t used, int64_t limit) {
      return of(CompactCount(used), CompactCount(limit));
    };
    for (const Gauge& gauge :
         {Gauge{"threads", load.busy_threads, info.threads,
                counts(load.busy_threads, info.threads)},
          Gauge{"slots", load.in_flight, load.max_in_flight,
                counts(load.in_flight, load.max_in_flight)},
          Gauge{"memory", load.reserved_bytes, info.memory_budget_bytes,
                of(FormatBytesShort(load.reserved_bytes),
                   FormatBytesShort(info.memory_budget_bytes))},
          Gauge{"connections", load.connections, load.max_connections,
                counts(load.connections, load.max_connections)}}) {
      lines.push_back(GaugeLine(gauge, columns));
    }
    lines.emplace_back();
    if (has_load()) {
      AppendRates(columns, lines);
    } else {
      lines.emplace_back("This server does not report its load.");
    }
  }
  for (std::string& line : lines) line = Cut(line, columns);
  return lines;
}

Json LoadReport::RatesJson(const Rates& rates) {
  const auto number = [](const std::optional<double>& value) {
    return value ? Json(*value) : Json();
  };
  return {{"method", rates.method},
          {"finished_per_second", rates.finished_per_second},
          {"failed_per_second", rates.failed_per_second},
          {"mean_queue_time_ms", number(rates.queue_ms)},
          {"mean_compute_time_ms", number(rates.compute_ms)},
          {"mean_total_time_ms", number(rates.total_ms)},
          {"mean_calls_waiting", rates.waiting},
          {"mean_calls_computing", rates.computing},
          {"gflops", number(rates.gflops)}};
}

Json LoadReport::ToJson() const {
  const auto time = [](absl::Time at) {
    return absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", at, absl::UTCTimeZone());
  };
  Json json = {{"server", server_}};
  json["health"] = health_ ? Json(HealthName(*health_)) : Json();
  if (outage_) {
    json["no_answer_since"] = time(outage_->since);
    json["error"] = {{"code", absl::StatusCodeToString(outage_->error.code())},
                     {"message", std::string(outage_->error.message())}};
    return json;
  }
  if (!known_) return json;
  const client::ServerInfo& info = known_->info;
  json["time"] = time(known_->time);
  json["version"] = info.version;
  json["isa"] = info.isa;
  json["threads"] = info.threads;
  json["memory_budget_bytes"] = info.memory_budget_bytes;
  json["load"] = LoadJson(info.load);
  json["rates"] = Json();
  if (has_load()) {
    Json methods = Json::array();
    for (const Rates& rates : methods_) methods.push_back(RatesJson(rates));
    json["rates"] = {{"seconds", absl::ToDoubleSeconds(covered_)},
                     {"since_start", period_ != Period::kInterval},
                     {"restarted", period_ == Period::kSinceRestart},
                     {"all", RatesJson(all_)},
                     {"methods", methods}};
  }
  return json;
}

std::vector<std::string> FitRows(std::vector<std::string> lines,
                                 absl::string_view footer, size_t rows,
                                 size_t columns) {
  if (rows == 0) return {};
  std::string last(footer);
  if (lines.size() >= rows) {
    absl::StrAppend(&last, " Lines that do not fit: ", lines.size() + 1 - rows,
                    ".");
  }
  lines.resize(rows - 1);
  lines.push_back(Cut(last, columns));
  return lines;
}

}  // namespace attnd::attnctl
