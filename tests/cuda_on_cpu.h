// Runs the .cu files of this package on a CPU: g++ -include cuda_on_cpu.h, no CUDA, no GPU.
//
// A block's threads are fibers, one running at a time from barrier to barrier, so that address and
// undefined-behaviour sanitizers see every access; or, with CUDA_ON_CPU_THREADS, real threads, so
// that the thread sanitizer sees every race on shared memory. Blocks run one after the other.
// __shared__ arrays are statics; dynamic shared memory is allocated anew for each block, to the
// byte, and filled with garbage. Not emulated: warps, blocks at the same time, memory spaces.
//
// The program (see run(), at the end) reads buffers and launches from a file and writes the
// buffers back. Buffers are separate allocations: a kernel that leaves one is caught.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#ifdef CUDA_ON_CPU_THREADS
#include <pthread.h>
#include <thread>
#else
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__) && !defined(CUDA_ON_CPU_THREADS)
#include <sanitizer/common_interface_defs.h>
#define CUDA_ON_CPU_FIBER_ANNOTATIONS 1
#endif

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static
#define DYNAMIC_SHARED(type, name) \
    type* name = reinterpret_cast<type*>(cuda_on_cpu::dynamic_shared)

struct uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

namespace cuda_on_cpu {

struct Index {
    unsigned x, y, z;
};

[[noreturn]] inline void fail(const char* message) {
    std::fprintf(stderr, "cuda_on_cpu: %s\n", message);
    std::exit(3);
}

inline char* dynamic_shared = nullptr;

}  // namespace cuda_on_cpu

inline thread_local cuda_on_cpu::Index threadIdx, blockIdx, blockDim, gridDim;

using std::max;
using std::min;

template <typename T>
inline T __ldg(const T* pointer) {
    return *pointer;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    const std::uint64_t both = static_cast<std::uint64_t>(high) << 32 | low;
    return static_cast<unsigned>(both >> (shift & 31));
}
// volatile keeps the compiler from fusing a product and a sum
inline float __fmul_rn(float a, float b) {
    volatile float product = a * b;
    return product;
}
inline float __fadd_rn(float a, float b) {
    volatile float sum = a + b;
    return sum;
}
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
// IEEE 754 binary16, to nearest even, in integers: written without a look at any library's
inline unsigned short float16_bits_on_cpu(float x) {
    const unsigned bits = __float_as_uint(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    const auto packed = [&](unsigned magnitude) {
        return static_cast<unsigned short>(sign | magnitude);
    };
    if (size > 0x7f800000) return packed(0x7e00);         // NaN
    if (size >= 0x477ff000) return packed(0x7c00);        // 65520 and more: infinity
    if (size < 0x33000001) return packed(0);              // up to 2^-25
    const int exponent = static_cast<int>(size >> 23) - 127;
    const unsigned fraction = (size & 0x7fffff) | 0x800000;
    const int drop = exponent >= -14 ? 13 : 13 + (-14 - exponent);
    unsigned kept = fraction >> drop;
    const unsigned rest = fraction & ((1u << drop) - 1), half = 1u << (drop - 1);
    if (rest > half || (rest == half && (kept & 1))) ++kept;
    if (exponent < -14) return packed(kept);
    return packed(kept + (static_cast<unsigned>(exponent + 14) << 10));
}

#define CUDA_ON_CPU_ATOMIC(name, expression)                                                  \
    template <typename T>                                                                      \
    inline T name(T* at, T value) {                                                            \
        T old = __atomic_load_n(at, __ATOMIC_RELAXED);                                         \
        while (!__atomic_compare_exchange_n(at, &old, static_cast<T>(expression), false,       \
                                            __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {             \
        }                                                                                      \
        return old;                                                                            \
    }
CUDA_ON_CPU_ATOMIC(atomicAdd, old + value)
CUDA_ON_CPU_ATOMIC(atomicMin, std::min(old, value))
CUDA_ON_CPU_ATOMIC(atomicMax, std::max(old, value))

namespace cuda_on_cpu {

// Dynamic shared memory of one block, exactly as long as the launch asks for.
struct Dynamic {
    explicit Dynamic(std::size_t bytes) {
        void* made = nullptr;
        if (posix_memalign(&made, 16, bytes ? bytes : 1)) fail("out of memory");
        std::memset(made, 0xab, bytes);
        dynamic_shared = static_cast<char*>(made);
    }
    ~Dynamic() { std::free(dynamic_shared); }
};

inline Index at(Index size, std::size_t number) {
    return {static_cast<unsigned>(number % size.x),
            static_cast<unsigned>(number / size.x % size.y),
            static_cast<unsigned>(number / (static_cast<std::size_t>(size.x) * size.y))};
}
inline std::size_t volume(Index size) {
    return static_cast<std::size_t>(size.x) * size.y * size.z;
}

#ifdef CUDA_ON_CPU_THREADS

inline pthread_barrier_t barrier;

inline void wait() { pthread_barrier_wait(&barrier); }

inline void launch(const std::function<void()>& kernel, Index grid, Index block,
                   std::size_t shared) {
    const std::size_t count = volume(block);
    pthread_barrier_init(&barrier, nullptr, static_cast<unsigned>(count));
    for (std::size_t b = 0; b < volume(grid); ++b) {
        const Dynamic dynamic(shared);
        std::vector<std::thread> threads;
        for (std::size_t t = 0; t < count; ++t) {
            threads.emplace_back([&, t] {
                gridDim = grid, blockDim = block;
                blockIdx = at(grid, b), threadIdx = at(block, t);
                kernel();
            });
        }
        for (auto& thread : threads) thread.join();
    }
    pthread_barrier_destroy(&barrier);
}

#else

struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(256 << 10);
    Index index{};
    bool done = false;
    void* fake = nullptr;  // the sanitizer's own stack
};

inline ucontext_t scheduler;
inline void* scheduler_fake = nullptr;
inline const void* scheduler_stack = nullptr;
inline std::size_t scheduler_size = 0;
inline Fiber* running = nullptr;
inline const std::function<void()>* body = nullptr;

inline void leave(bool forever) {
#ifdef CUDA_ON_CPU_FIBER_ANNOTATIONS
    __sanitizer_start_switch_fiber(forever ? nullptr : &running->fake, scheduler_stack,
                                   scheduler_size);
#endif
    Fiber* self = running;
    swapcontext(&self->context, &scheduler);
#ifdef CUDA_ON_CPU_FIBER_ANNOTATIONS
    __sanitizer_finish_switch_fiber(self->fake, &scheduler_stack, &scheduler_size);
#endif
    threadIdx = self->index;
    (void)forever;
}

inline void enter(Fiber& fiber) {
    running = &fiber;
    threadIdx = fiber.index;
#ifdef CUDA_ON_CPU_FIBER_ANNOTATIONS
    __sanitizer_start_switch_fiber(&scheduler_fake, fiber.stack.data(), fiber.stack.size());
#endif
    swapcontext(&scheduler, &fiber.context);
#ifdef CUDA_ON_CPU_FIBER_ANNOTATIONS
    __sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr);
#endif
}

inline void start() {
#ifdef CUDA_ON_CPU_FIBER_ANNOTATIONS
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
#endif
    (*body)();
    running->done = true;
    leave(true);
}

inline void wait() { leave(false); }

inline void prepare(Fiber& fiber) {
    fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, start, 0);
}

inline void launch(const std::function<void()>& kernel, Index grid, Index block,
                   std::size_t shared) {
    static std::vector<Fiber> fibers;
    if (fibers.size() < volume(block)) fibers = std::vector<Fiber>(volume(block));
    body = &kernel;
    gridDim = grid, blockDim = block;
    for (std::size_t b = 0; b < volume(grid); ++b) {
        const Dynamic dynamic(shared);
        blockIdx = at(grid, b);
        const std::size_t count = volume(block);
        for (std::size_t t = 0; t < count; ++t) {
            fibers[t].index = at(block, t);
            prepare(fibers[t]);
        }
        std::size_t done = 0;
        for (bool odd = false; done < count; odd = !odd) {
            // every other turn backwards: what depends on the threads' order shows
            for (std::size_t t = 0; t < count; ++t) enter(fibers[odd ? count - 1 - t : t]);
            done = 0;
            for (std::size_t t = 0; t < count; ++t) done += fibers[t].done;
            if (done && done < count) fail("some threads of a block left, others wait for them");
        }
    }
}

#endif

using Arguments = std::vector<std::uint64_t>;

template <typename T>
T argument(std::uint64_t word) {
    T value;
    std::memcpy(&value, &word, sizeof value);
    return value;
}

template <typename... A, std::size_t... I>
std::function<void()> bound(void (*kernel)(A...), const Arguments& words,
                            std::index_sequence<I...>) {
    if (words.size() != sizeof...(A)) fail("the number of arguments differs");
    return [=] { kernel(argument<A>(words[I])...); };
}

struct Kernel {
    template <typename... A>
    Kernel(void (*kernel)(A...))
        : bind([=](const Arguments& words) {
              return bound(kernel, words, std::index_sequence_for<A...>{});
          }),
          sizes{sizeof(A)...} {}
    std::function<std::function<void()>(const Arguments&)> bind;
    std::vector<std::size_t> sizes;
};

class Reader {
  public:
    explicit Reader(const char* path) : file_(std::fopen(path, "rb")) {
        if (!file_) fail("cannot open the input");
    }
    ~Reader() { std::fclose(file_); }
    Reader(const Reader&) = delete;
    void read(void* to, std::size_t bytes) {
        if (std::fread(to, 1, bytes, file_) != bytes) fail("the input is too short");
    }
    std::uint64_t word() {
        std::uint64_t value;
        read(&value, sizeof value);
        return value;
    }
    std::string text() {
        std::string value(word(), '\0');
        read(value.data(), value.size());
        return value;
    }

  private:
    std::FILE* file_;
};

struct Buffer {
    char* data = nullptr;
    std::size_t bytes = 0;
};

// A symbolic address is (buffer + 1) << 40 | offset; other words stay as they are.
inline std::uint64_t resolved(std::uint64_t word, const std::vector<Buffer>& buffers) {
    if (word >> 40 == 0 || word >> 40 > buffers.size()) return word;
    return reinterpret_cast<std::uint64_t>(buffers[(word >> 40) - 1].data) +
           (word & ((1ull << 40) - 1));
}

// One launch in this process, its addresses real ones: 0, or 3 where it does not fit a kernel.
inline int call(const std::map<std::string, Kernel>& kernels, const char* name,
                const std::uint64_t* shape, std::size_t count, const std::uint64_t* sizes,
                const std::uint64_t* words) {
    const auto found = kernels.find(name);
    if (found == kernels.end()) return 3;
    if (!std::equal(sizes, sizes + count, found->second.sizes.begin(),
                    found->second.sizes.end())) {
        return 3;
    }
    const auto index = [&](int i) {
        return Index{static_cast<unsigned>(shape[i]), static_cast<unsigned>(shape[i + 1]),
                     static_cast<unsigned>(shape[i + 2])};
    };
    launch(found->second.bind(Arguments(words, words + count)), index(0), index(3), shape[6]);
    return 0;
}

// program INPUT OUTPUT. Input, in 64-bit words: buffers (skew, size, bytes each), places that hold
// symbolic addresses (buffer, offset), launches (name, grid, block, shared, argument sizes and
// words). Output: the buffers' bytes one after the other.
inline int run(int count, char** paths, const std::map<std::string, Kernel>& kernels) {
    if (count != 3) fail("usage: program INPUT OUTPUT");
    Reader input(paths[1]);
    std::vector<Buffer> buffers(input.word());
    std::vector<void*> blocks;
    for (Buffer& buffer : buffers) {
        const std::size_t skew = input.word();
        buffer.bytes = input.word();
        void* block = nullptr;
        if (posix_memalign(&block, 64, skew + buffer.bytes + (buffer.bytes == 0))) {
            fail("out of memory");
        }
        blocks.push_back(block);
        buffer.data = static_cast<char*>(block) + skew;
        input.read(buffer.data, buffer.bytes);
    }
    for (std::uint64_t places = input.word(); places > 0; --places) {
        char* place = buffers.at(input.word()).data;
        place += input.word();
        std::uint64_t word;
        std::memcpy(&word, place, sizeof word);
        word = resolved(word, buffers);
        std::memcpy(place, &word, sizeof word);
    }
    for (std::uint64_t launches = input.word(); launches > 0; --launches) {
        const std::string name = input.text();
        std::uint64_t shape[7];
        for (auto& value : shape) value = input.word();
        Arguments words(input.word()), sizes(words.size());
        for (std::size_t i = 0; i < words.size(); ++i) {
            sizes[i] = input.word();
            words[i] = input.word();
            if (sizes[i] == 8) words[i] = resolved(words[i], buffers);
        }
        if (call(kernels, name.c_str(), shape, words.size(), sizes.data(), words.data())) {
            fail("no such kernel, or the arguments differ from its parameters");
        }
    }
    std::FILE* output = std::fopen(paths[2], "wb");
    if (!output) fail("cannot open the output");
    for (const Buffer& buffer : buffers) {
        if (std::fwrite(buffer.data, 1, buffer.bytes, output) != buffer.bytes) {
            fail("cannot write the output");
        }
    }
    std::fclose(output);
    for (void* block : blocks) std::free(block);
    return 0;
}

}  // namespace cuda_on_cpu

inline void __syncthreads() { cuda_on_cpu::wait(); }
