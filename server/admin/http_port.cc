#include "server/admin/http_port.h"

#include <httplib.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "base/unique_fd.h"
#include "server/admin/http_stream.h"

namespace attnd::server {
namespace {

using std::chrono::milliseconds;
using SteadyTime = std::chrono::steady_clock::time_point;

constexpr int kThreads = 4;
// How many accepted connections may be silent or wait for a thread.
constexpr size_t kMaxWaiting = 16;
// How many refused connections may wait for the client to close its side.
constexpr size_t kMaxLeaving = 8;
constexpr int64_t kMaxBodyBytes = 64 << 10;
// How long to wait after a failed accept.
constexpr milliseconds kAcceptPause{100};

constexpr char kBusy[] =
    "HTTP/1.1 503 Service Unavailable\r\n"
    "Connection: close\r\n"
    "Retry-After: 1\r\n"
    "Content-Type: text/plain\r\n"
    "Content-Length: 58\r\n\r\n"
    "The admin port serves too many clients now. Try again soon";

// Gives access to the part of the library that reads one request and writes its
// answer. The library's own loop has no limit on waiting connections or on the
// time of a request, and refuses sockets whose number is above 1023.
class Library final : public httplib::Server {
 public:
  template <typename Stream>
  void Serve(Stream& stream,
             const std::function<void(httplib::Request&)>& prepare) {
    bool closed = true;
    if constexpr (requires {
                    process_request(stream, true, closed, prepare);
                  }) {
      process_request(stream, true, closed, prepare);
    } else {  // since version 0.16
      process_request(stream, "", 0, "", 0, true, closed, prepare);
    }
  }
};

// The library routes every request here, because it would match the path of a
// client with regular expressions.
constexpr char kOnlyPath[] = "/";

// Decodes a name or a value of a query. A '%' that no byte follows stays.
std::string Decoded(absl::string_view text) {
  std::string decoded;
  uint32_t byte = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const absl::string_view digits = text.substr(i + 1, 2);
    if (text[i] == '%' && digits.size() == 2 &&
        absl::ascii_isxdigit(static_cast<unsigned char>(digits[0])) &&
        absl::ascii_isxdigit(static_cast<unsigned char>(digits[1])) &&
        absl::SimpleHexAtoi(digits, &byte)) {
      decoded += static_cast<char>(byte);
      i += 2;
    } else {
      decoded += text[i] == '+' ? ' ' : text[i];
    }
  }
  return decoded;
}

// Returns the parameters in the query of `target`. The library's own list lacks
// parameters that are equal to an earlier one, such as in a list of numbers.
std::multimap<std::string, std::string> ParamsOf(absl::string_view target) {
  std::multimap<std::string, std::string> params;
  const size_t query = target.find('?');
  if (query == absl::string_view::npos) return params;
  for (const absl::string_view each :
       absl::StrSplit(target.substr(query + 1), '&', absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> param =
        absl::StrSplit(each, absl::MaxSplits('=', 1));
    params.emplace(Decoded(param.first), Decoded(param.second));
  }
  return params;
}

HttpRequest Convert(const httplib::Request& request,
                    const HttpStream& connection) {
  return {.method = request.method,
          .path = request.target.substr(0, request.target.find('?')),
          .params = ParamsOf(request.target),
          .host = connection.Header("host"),
          .accept = connection.Header("accept"),
          .content_type = connection.Header("content-type"),
          .body = request.body};
}

void Set(httplib::Response& to, const HttpResponse& response) {
  to.status = response.status;
  for (const auto& [name, value] : response.headers) to.set_header(name, value);
  to.set_content(response.body, response.content_type);
}

// Checks the headers of a request with a body, before the body is read.
std::optional<HttpProblem> CheckBody(const httplib::Request& request) {
  int64_t size_bytes = 0;
  const std::string length = request.get_header_value("Content-Length");
  if (length.empty() || request.has_header("Transfer-Encoding")) {
    return HttpProblem{411, "expected the header Content-Length"};
  }
  if (!absl::SimpleAtoi(length, &size_bytes) || size_bytes < 0) {
    return HttpProblem{400, "Content-Length: expected a whole number >= 0"};
  }
  if (size_bytes > kMaxBodyBytes) {
    return HttpProblem{
        413, absl::StrCat("expected a body of at most ", kMaxBodyBytes,
                          " bytes, got ", size_bytes)};
  }
  return std::nullopt;
}

}  // namespace

class HttpPort::Impl {
 public:
  Impl(Listener listener, Site site)
      : listener_(std::move(listener)),
        site_(std::move(site)),
        stop_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (!stop_.valid()) {
      throw std::system_error(errno, std::generic_category(), "eventfd");
    }
    try {
      threads_.emplace_back([this] { Accept(); });
      for (int i = 0; i < kThreads; ++i) {
        threads_.emplace_back([this] { Work(); });
      }
    } catch (...) {
      Stop();
      throw;
    }
  }

  ~Impl() { Stop(); }

 private:
  void Stop() {
    eventfd_write(stop_.get(), 1);
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  // A connection that no thread serves, and when the port closes it.
  struct Client {
    UniqueFd fd;
    SteadyTime until;
  };

  void Accept() {
    pthread_setname_np(pthread_self(), "attnd-admin");  // for top -H
    for (;;) {
      std::vector<pollfd> polled;
      const auto add = [&](const UniqueFd& fd) {
        polled.push_back({.fd = fd.get(), .events = POLLIN, .revents = 0});
      };
      add(stop_);
      for (const Client& client : silent_) add(client.fd);
      for (const Client& client : leaving_) add(client.fd);
      for (const UniqueFd& socket : listener_.sockets) add(socket);
      poll(polled.data(), polled.size(), MillisecondsLeft());
      auto next = polled.begin();
      const auto is_readable = [&] { return (next++)->revents != 0; };
      if (is_readable()) return;
      const SteadyTime now = std::chrono::steady_clock::now();
      for (Client& client : std::exchange(silent_, {})) {
        if (is_readable()) {
          GiveToAThread(std::move(client.fd));
        } else if (client.until > now) {
          silent_.push_back(std::move(client));
        }
      }
      for (Client& client : std::exchange(leaving_, {})) {
        const bool stays = !is_readable() || Discard(client.fd);
        if (stays && client.until > now) leaving_.push_back(std::move(client));
      }
      for (const UniqueFd& socket : listener_.sockets) {
        if (is_readable()) AcceptFrom(socket.get());
      }
    }
  }

  // Returns the time until the first of the clients must be closed, or -1.
  int MillisecondsLeft() const {
    std::optional<SteadyTime> first;
    for (const std::deque<Client>* clients : {&silent_, &leaving_}) {
      if (clients->empty()) continue;
      const SteadyTime until = clients->front().until;
      first = std::min(first.value_or(until), until);
    }
    if (!first) return -1;
    const auto left = std::chrono::ceil<milliseconds>(
        *first - std::chrono::steady_clock::now());
    return static_cast<int>(std::max<int64_t>(left.count(), 0));
  }

  // Reads what the client has sent. Returns whether it may send more.
  static bool Discard(const UniqueFd& fd) {
    std::array<char, 4096> part{};
    const ssize_t size = recv(fd.get(), part.data(), part.size(), 0);
    return size > 0 || (size < 0 && (errno == EAGAIN || errno == EINTR));
  }

  // Tells a client that there is no place for it. Keeps the connection for a
  // while, because a request that came after its end would make the kernel
  // reset it, and some clients then do not see the answer.
  void Refuse(UniqueFd fd) {
    send(fd.get(), kBusy, sizeof(kBusy) - 1, MSG_NOSIGNAL);
    shutdown(fd.get(), SHUT_WR);
    if (leaving_.size() == kMaxLeaving) leaving_.pop_front();
    leaving_.push_back(
        {std::move(fd), std::chrono::steady_clock::now() + kHttpLingerTime});
  }

  void GiveToAThread(UniqueFd fd) {
    {
      const std::lock_guard lock(mutex_);
      ready_.push_back(std::move(fd));
    }
    changed_.notify_one();
  }

  void AcceptFrom(int listening) {
    UniqueFd fd(
        accept4(listening, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd.valid()) {
      // For example, the process may have too many open files.
      if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR) {
        pollfd stop = {.fd = stop_.get(), .events = POLLIN, .revents = 0};
        poll(&stop, 1, static_cast<int>(kAcceptPause.count()));
      }
      return;
    }
    size_t waiting = silent_.size();
    {
      const std::lock_guard lock(mutex_);
      waiting += ready_.size();
    }
    if (waiting >= kMaxWaiting) {
      if (silent_.empty()) {
        Refuse(std::move(fd));
        return;
      }
      // Clients that send nothing must not keep out one that does.
      Refuse(std::move(silent_.front().fd));
      silent_.pop_front();
    }
    silent_.push_back(
        {std::move(fd), std::chrono::steady_clock::now() + kHttpReadTime});
  }

  void Work() {
    pthread_setname_np(pthread_self(), "attnd-admin");
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return stopping_ || !ready_.empty(); });
      if (stopping_) return;
      UniqueFd fd = std::move(ready_.front());
      ready_.pop_front();
      lock.unlock();
      Serve(std::move(fd));
      lock.lock();
    }
  }

  void Serve(UniqueFd fd) {
    HttpStream connection(std::move(fd), stop_.get());
    const std::optional<HttpProblem> refused = connection.ReadHead();
    if (!connection.HasBegun()) return;
    using Handled = httplib::Server::HandlerResponse;
    bool may_send = true;
    bool reads_body = false;
    Library library;
    library.set_pre_routing_handler(
        [&](const httplib::Request& request, httplib::Response& response) {
          if (refused) {
            Set(response, site_.problem(refused->status, refused->text));
            return Handled::Handled;
          }
          const HttpRequest unread = Convert(request, connection);
          if (request.method != "POST") {
            may_send = request.has_header("Content-Length") ||
                       request.has_header("Transfer-Encoding");
            Set(response, site_.answer(unread));
            return Handled::Handled;
          }
          if (const auto refusal = site_.refuse_unread(unread)) {
            Set(response, *refusal);
            return Handled::Handled;
          }
          const std::optional<HttpProblem> problem = CheckBody(request);
          if (!problem) {
            reads_body = true;
            return Handled::Unhandled;
          }
          Set(response, site_.problem(problem->status, problem->text));
          return Handled::Handled;
        });
    library.Post(kOnlyPath, [&](const httplib::Request& request,
                                httplib::Response& response) {
      may_send = false;
      Set(response, site_.answer(Convert(request, connection)));
    });
    library.set_error_handler(
        [&](const httplib::Request&, httplib::Response& response) {
          if (!response.body.empty()) return;
          // The library answers 400 to every body that ends too early.
          const int status = connection.TimedOut() ? 408 : response.status;
          const bool body_ended = reads_body && !connection.TimedOut();
          Set(response,
              site_.problem(status, body_ended
                                        ? "expected a body of as many bytes as "
                                          "the header Content-Length says"
                                        : WhyRefused(status)));
        });
    library.set_exception_handler([&](const httplib::Request&,
                                      httplib::Response& response,
                                      const std::exception_ptr&) {
      Set(response, site_.problem(500, "the server failed to answer"));
    });
    library.Serve(connection, [](httplib::Request& request) {
      request.path = std::string(kOnlyPath);
    });
    connection.Close(may_send);
  }

  const Listener listener_;
  const Site site_;
  const UniqueFd stop_;  // readable from the moment when the port stops
  // Only the thread that accepts uses the next two. Those that are closed first
  // are in front.
  std::deque<Client> silent_;   // have sent nothing
  std::deque<Client> leaving_;  // refused
  std::mutex mutex_;
  std::condition_variable changed_;
  // mutex_ guards the next two.
  std::deque<UniqueFd> ready_;  // readable, for the next free thread
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

HttpPort::HttpPort(Listener listener, Site site)
    : impl_(std::make_unique<Impl>(std::move(listener), std::move(site))) {}

HttpPort::~HttpPort() = default;

}  // namespace attnd::server
