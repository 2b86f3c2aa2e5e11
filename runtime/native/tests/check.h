// The smallest test helper: CHECK counts and prints, the program's exit status says how it went.
//   int main() { CHECK(1 + 1 == 2); return quantd::test::finish("name"); }
#pragma once

#include <cstdio>
#include <exception>

namespace quantd::test {

inline int checks = 0;
inline int failures = 0;

inline bool check(bool ok, const char* expression, const char* file, int line) {
    ++checks;
    if (!ok) {
        ++failures;
        std::fprintf(stderr, "%s:%d: CHECK failed: %s\n", file, line, expression);
    }
    return ok;
}

// Prints the verdict; returns the exit status of main.
inline int finish(const char* name) {
    std::printf("%s: %d checks, %d failed\n", name, checks, failures);
    return failures == 0 ? 0 : 1;
}

}  // namespace quantd::test

#define CHECK(...) ::quantd::test::check(static_cast<bool>(__VA_ARGS__), #__VA_ARGS__, __FILE__, __LINE__)

// CHECK_THROWS(std::out_of_range, table.at(9));
#define CHECK_THROWS(exception_type, ...)                                                           \
    do {                                                                                            \
        bool thrown = false;                                                                        \
        try {                                                                                       \
            (void)(__VA_ARGS__);                                                                    \
        } catch (const exception_type&) {                                                           \
            thrown = true;                                                                          \
        } catch (const std::exception& error) {                                                     \
            std::fprintf(stderr, "another exception: %s\n", error.what());                          \
        }                                                                                           \
        ::quantd::test::check(thrown, #__VA_ARGS__ " throws " #exception_type, __FILE__, __LINE__); \
    } while (false)
